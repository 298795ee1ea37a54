"""Open what is to be exported: a model object, or a file of one, read in safe mode."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras

from keras_prune.keras_seam import layers_in
from tflite_export.convert.workspace import temporary_folder
from tflite_export.errors import ExportError
from tflite_export.file.reading import check_keras_archive
from tflite_export.model.classes import Compiled
from tflite_export.model.signature import output_names
from tflite_export.source.keras2 import check_h5, modernize_h5, strip_tf_keras
from tflite_export.source.source import FunctionSource, KerasSource, Source

__all__ = ["files_of", "open_source"]

_FOLDERS = ("variables", "assets", "assets.extra", "debug")
"""Of a SavedModel."""


def open_source(model: Any, signature_key: str | None = None) -> Source:
    """Return what is exported, whatever it comes as.

    Args:
        model: a Keras 3 model; a tf_keras model, pruned by tfmot or not; the path of a `.keras` or legacy `.h5`
            file, read in safe mode: code in it is not run; the path of a SavedModel's folder, which is a TensorFlow
            program that is run, so that it has to be one you trust.
        signature_key: of a SavedModel: which signature; None takes `serving_default`, or the only one.

    Raises:
        ExportError: it is none of these, or cannot be read.

    Example:
        >>> source = open_source(keras.Sequential([keras.Input((3,), name="x"), keras.layers.Dense(2)]))
        >>> [spec.name for spec in source.signature().inputs]
        ['x']
    """
    if signature_key is not None and not _is_saved_model(model):
        raise ExportError(
            "signature_key",
            "applies to a SavedModel only",
            f"{signature_key!r} for another model",
            "Leave it out.",
        )
    if isinstance(model, keras.Model):
        return KerasSource(model)
    if _is_tf_keras(model):
        return _from_tf_keras(model)
    if not isinstance(model, (str, os.PathLike)):
        raise ExportError(
            "model",
            "must be a Keras or tf_keras model, or the path of a .keras, a .h5 or a SavedModel",
            type(model).__name__,
            "A model of another library is saved as a SavedModel first.",
        )
    path = Path(model)
    if path.suffix in (".keras", ".h5", ".hdf5") and not path.exists():
        raise ExportError(f"'{path}'", "must exist", "no such file", "Check the path.")
    if path.suffix == ".keras" and path.is_file():
        return KerasSource(_load(path), compiled=_compiled(_config_of_zip(path).get("compile_config")))
    if path.suffix in (".h5", ".hdf5"):
        return KerasSource(_load_h5(path), compiled=_compiled(_training_config(path)))
    if _is_saved_model(path):
        return FunctionSource.load(path, signature_key)
    raise ExportError(
        f"'{path}'",
        "must be a .keras file, a .h5 file, or the folder of a SavedModel",
        "a folder without saved_model.pb" if path.is_dir() else path.suffix or "no suffix",
        "Save the model by model.save('model.keras') or model.export('folder').",
    )


def files_of(model: Any) -> list[Path]:
    """Return the files that a model is read from: none for an object, all parts of a SavedModel for its folder."""
    if not isinstance(model, (str, os.PathLike)):
        return []
    path = Path(model)
    if not path.is_dir():
        return [path]
    parts = [each for folder in _FOLDERS for each in (path / folder).rglob("*")]
    return [each for each in (*path.glob("*.pb"), *path.glob("saved_model.*"), *parts) if not each.is_dir()]


def _is_saved_model(model: Any) -> bool:
    return isinstance(model, (str, os.PathLike)) and (Path(model) / "saved_model.pb").is_file()


def _is_tf_keras(model: Any) -> bool:
    """Return whether an object is a tf_keras model, without importing that library."""
    return any(each.__module__.split(".")[0] == "tf_keras" and each.__name__ == "Model" for each in type(model).__mro__)


def _from_tf_keras(model: Any) -> Source:
    """Return a tf_keras model without tfmot's wrappers as Keras 3's where that can load it, else as its function."""
    if not model.built:
        raise ExportError(
            f"model '{model.name}'", "must be built before it is exported", "an unbuilt model", "Call it on a batch."
        )
    plain = strip_tf_keras(model)
    note = "tf_keras model: exported as the Keras 3 model of the same configuration and weights"
    with temporary_folder() as folder:
        path = Path(folder) / "model.h5"
        try:
            plain.save(path, save_format="h5", include_optimizer=False)
            return KerasSource(_load_h5(path), original=model, notes=(note,))
        except Exception as error:  # of tf_keras on saving, of Keras 3 on loading
            reason = str(getattr(error, "received", error)).strip().splitlines()[0][:160]
    specs, function = _function_of_tf_keras(plain)
    note = f"tf_keras model: exported as it is, without rewrites, since Keras 3 cannot load it ({reason})"
    return FunctionSource(f"model '{model.name}'", function, specs, plain, plain.variables, notes=(note,))


def _function_of_tf_keras(model: Any) -> tuple[list[tuple[str, tuple[int | None, ...], str]], Callable[..., Any]]:
    # A subclassed model knows what it was called with.
    structure = model.input if model.inputs and hasattr(model, "input") else (model.save_spec() or ((None,),))[0][0]
    if structure is None:
        raise ExportError(
            f"model '{model.name}'", "its inputs must be known", "a tf_keras model never called", "Call it on a batch."
        )
    leaves = keras.tree.flatten(structure)
    names = [leaf.name.split(":")[0].replace("/", "_") for leaf in leaves]

    def function(**named: Any) -> dict[str, Any]:
        packed = keras.tree.pack_sequence_as(structure, [named[name] for name in names])
        outputs = model(packed, training=False)
        return dict(zip(output_names(outputs), keras.tree.flatten(outputs), strict=True))

    return [(name, tuple(leaf.shape), leaf.dtype.name) for name, leaf in zip(names, leaves, strict=True)], function


def _load_h5(path: Path) -> keras.Model:
    """Load a legacy .h5 file in safe mode; one of Keras 2 without tfmot's wrappers."""
    with temporary_folder() as folder:
        modern = Path(folder) / "modern.h5"
        try:
            check_h5(path)
            rewritten = modernize_h5(path, modern)
        except (OSError, KeyError, TypeError, ValueError) as error:
            if isinstance(error, ExportError):
                raise
            raise _unreadable(path, error) from error
        model = _load(modern if rewritten else path, path)
    for layer in layers_in(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()  # Keras does so itself, but not inside a model inside the model
    return model


def _load(path: Path, called: Path | None = None) -> keras.Model:
    if called is None and not zipfile.is_zipfile(path):
        raise ExportError(
            f"'{path}'", "must be a .keras file", "no zip archive: damaged, or cut short", "Save it again."
        )
    if called is None:
        check_keras_archive(path)
    try:
        model: keras.Model = keras.saving.load_model(path, compile=False, safe_mode=True)
    except Exception as error:  # Keras raises anything from ValueError to BadZipFile
        raise _unreadable(called or path, error) from error
    return model


def _config_of_zip(path: Path) -> dict[str, Any]:
    """Return the configuration in a .keras file that was loaded, its compilation with it."""
    with zipfile.ZipFile(path) as archive:
        found: dict[str, Any] = json.loads(archive.read("config.json"))
    return found


def _training_config(path: Path) -> Any:
    """Return what a model in an .h5 file that was loaded was compiled with, or None."""
    with h5py.File(path, "r") as file:
        text = file.attrs.get("training_config")
    return None if text is None else json.loads(text)


def _compiled(config: Any) -> Compiled:
    """Return what a model was compiled with, from its configuration, of which nothing is made."""
    return Compiled(config.get("loss"), config.get("metrics")) if isinstance(config, dict) else Compiled()


def _unreadable(path: Path, error: Exception) -> ExportError:
    text = str(error).strip()
    if "Lambda" in text and "OpLambda" not in text:
        return ExportError(
            f"'{path}'",
            "must load in safe mode, which runs no code from a file",
            "a Lambda layer of Python code",
            "Make the model in Python and hand it over as an object, or write the Lambda as a layer of Keras.",
        )
    return ExportError(
        f"'{path}'",
        "must load in safe mode",
        # Keras puts the whole configuration of a layer before what was wrong with it.
        f"{type(error).__name__}: {text.rsplit('Exception encountered: ', 1)[-1][:300]}",
        "Save it again; a model with custom code is exported from Python.",
    )
