"""What TensorFlow's converter of models to TFLite has no public name for."""

from __future__ import annotations

from typing import Any

__all__ = ["converter_of", "spare_copies"]


def converter_of(folder: str) -> Any:
    """Return TensorFlow's converter of a SavedModel.

    The public way loads all weights into Python twice, for the names of signatures and for the places in the source
    that errors name, before the conversion reads the files itself. The class that it returns does without; where a
    version of TensorFlow has it no more, the public way is taken and the file is the same.
    """
    import tensorflow as tf
    from tensorflow.lite.python import lite

    whole = getattr(lite, "TFLiteSavedModelConverterV2", None)
    if not all(hasattr(whole, name) for name in ("_load_saved_model", "_convert_from_saved_model")):
        return tf.lite.TFLiteConverter.from_saved_model(folder)

    class Direct(whole):  # type: ignore[misc,valid-type]
        def convert(self) -> Any:
            graph, _, _ = self._load_saved_model(self.saved_model_dir, self._saved_model_tags)
            return self._convert_from_saved_model(graph)

    return Direct(folder, {tf.saved_model.SERVING}, [tf.saved_model.DEFAULT_SERVING_SIGNATURE_DEF_KEY])


def spare_copies(converter: Any, *, calibrated: bool) -> None:
    """Spare the file ways through Python objects and back, which take as long as the conversion; it stays the same.

    Args:
        converter: TensorFlow's; one that does not know the second attribute, which is private, takes the way.
        calibrated: whether it will run the file to see the ranges of activations, for which it is read anyway.
    """
    converter.exclude_conversion_metadata = True
    converter._experimental_use_buffer_offset = not calibrated
