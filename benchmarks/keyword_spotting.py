r"""A keyword spotter for a microcontroller: fewer channels, 16 values a kernel, trained as an int8 file rounds it.

    pip install "keras-prune[mcu,npu,compression]"
    apt-get install espeak-ng
    python -m benchmarks.keyword_spotting               three seeds
    python -m benchmarks.keyword_spotting --seeds 0     one
    python -m benchmarks.keyword_spotting --quick       no figures to speak of: that all of it runs

The network and the data are those of `benchmarks.compress`: a DS-CNN tells ten words apart that espeak-ng's voices say.
Voices of training, validation and test are different ones. For each share of the parameters, the smallest first:

1. `kp.structured.prune`, what is kept solved again, and a training in which the dense model teaches;
2. `kp.share`, then `kp.quantize_aware` with `kp.WeightSharing`: a shorter training with rounded, shared weights;
3. `tx.export(..., target="mcu")`. The first share whose file is good enough on the validation voices is taken, and that
   file is judged on the test voices, once.

Accuracy is that of the int8 files in LiteRT, records decoded. Flash is the file in which TensorFlow Lite Micro runs it,
and the file that Vela compiles for the Ethos-U55, beside those of the dense model. Models are kept in `--folder`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import warnings
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")

import keras

import keras_prune as kp
import tflite_export as tx
from benchmarks.compress import Arrays, accuracy, ds_cnn, trained, words
from benchmarks.data import cache_folder
from benchmarks.timing import machine, print_table, verdict

FLASH, DROP = 0.4, 0.01
"""At most: flash beside the plain int8 file's, and accuracy below it."""
MARGIN = 0.0075
"""A share is taken if its file loses no more than this on validation voices, of which there are 1,600."""
SAMPLES = 256
"""Sounds that ranges of activations begin with."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A file beside the plain int8 file of the same dense model.

    Args:
        seed: of the dense model, and of all training.
        share: of the parameters that is left.
        validation: accuracies on validation voices: of the plain file, of this one.
        test: likewise on test voices.
        mcu: bytes of flash likewise, in TensorFlow Lite Micro.
        ethos: likewise, as Vela compiles it.
        decoded: weights that are stored as records.
    """

    seed: int
    share: float
    validation: tuple[float, float]
    test: tuple[float, float]
    mcu: tuple[int, int]
    ethos: tuple[int, int]
    decoded: int

    @property
    def drop(self) -> float:
        """Accuracy that is lost on test voices."""
        return self.test[0] - self.test[1]

    @property
    def flash(self) -> float:
        """Flash beside the plain file's."""
        return self.mcu[1] / self.mcu[0]


def taught(
    student: keras.Model,
    teacher: keras.Model,
    data: Arrays,
    rate: float,
    epochs: int,
    seed: int,
    *callbacks: keras.callbacks.Callback,
) -> keras.Model:
    """Train a model by labels and by another one's answers; the learning rate falls as a cosine."""
    keras.utils.set_random_seed(seed)
    schedule = keras.optimizers.schedules.CosineDecay(rate, epochs * -(-len(data[0]) // 128))
    student.compile(keras.optimizers.Adam(schedule), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    lesson = kp.structured.Distillation(teacher, temperature=3.0, alpha=0.3)
    lesson.fit(student, x=data[0], y=data[1], batch_size=128, epochs=epochs, verbose=0, callbacks=list(callbacks))
    return student


def small(dense: keras.Model, share: float, seed: int, train: Arrays, options: argparse.Namespace) -> keras.Model:
    """Return the model of a share, quantization-aware, its weights shared; made once."""
    path = options.folder / f"spotter-{seed}-{share:g}-{options.values}.keras"
    if not path.exists():
        inputs = train[0][:1024]
        model = kp.structured.prune(kp.strip(dense), params=share, reconstruct=inputs, verbose=0)
        kp.recalibrate(model, inputs)
        model = taught(model, dense, train, 3e-3, options.epochs, seed)
        kp.share(model, options.values, seed=seed)
        model = kp.quantize_aware(model, data=inputs[:SAMPLES])
        model = taught(model, dense, train, 1e-3, options.aware, seed, kp.WeightSharing(options.values, seed=seed))
        model.save(path)
    return kp.load_model(path)


def exported(model: keras.Model, path: Path, target: str, train: Arrays) -> tx.ExportReport:
    """Export for a target."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # int8 is less exact than float32, which the table shows
        return tx.export(model, path, target=target, quantize="int8", data=train[0][:SAMPLES], optimize="size")


def flash_of(report: tx.ExportReport) -> int:
    """Return the bytes of flash that a report says."""
    if report.npu is not None:
        return report.npu.compiled.flash_bytes
    assert report.micro is not None
    return report.micro.model_bytes


def measure(seed: int, data: tuple[Arrays, Arrays, Arrays], options: argparse.Namespace) -> Row:
    """Return the row of a seed: of the smallest share that is good enough on validation voices, or of the last."""
    train, validation, test = data
    settings = argparse.Namespace(folder=options.folder, seed=seed, epochs=options.dense)
    dense = trained(f"ds_cnn-{seed}", ds_cnn, train, settings)
    at = {name: options.folder / f"{name}-{seed}.tflite" for name in ("plain", "small", "plain-npu", "small-npu")}
    plain = exported(dense, at["plain"], "mcu", train)
    before = accuracy(at["plain"], validation)
    for share in options.shares:
        model = small(dense, share, seed, train, options)
        made = exported(model, at["small"], "mcu", train)
        after = accuracy(at["small"], validation)
        print(f"seed {seed}, {share:.1%} left: {after:.4f} on validation voices, plain {before:.4f}", flush=True)
        if before - after <= MARGIN:
            break
    npu = [exported(one, at[name], "ethos-u55", train) for one, name in ((dense, "plain-npu"), (model, "small-npu"))]
    decoding = made.micro.decoding if made.micro is not None else None
    return Row(
        seed,
        share,
        (before, after),
        (accuracy(at["plain"], test), accuracy(at["small"], test)),
        (flash_of(plain), flash_of(made)),
        (flash_of(npu[0]), flash_of(npu[1])),
        0 if decoding is None else decoding.weights,
    )


def main(arguments: list[str] | None = None) -> int:
    """Print the table; 1 if what is asked is missed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks.keyword_spotting", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--shares", type=float, nargs="+", default=[0.18, 0.25], help="the smallest first")
    parser.add_argument("--values", type=int, default=16, help="of the weights in each kernel, zero counted")
    parser.add_argument("--dense", type=int, default=15, help="epochs of the dense training")
    parser.add_argument("--epochs", type=int, default=20, help="of the training with fewer channels")
    parser.add_argument("--aware", type=int, default=4, help="epochs of the quantization-aware training")
    parser.add_argument("--folder", type=Path, help="of models and files; by default in the cache of data sets")
    parser.add_argument("--quick", action="store_true", help="six voices, an epoch of each; its own folder")
    options = parser.parse_args(arguments)
    if options.quick:
        options.seeds, options.dense, options.epochs, options.aware = [0], 1, 1, 1
    options.folder = options.folder or cache_folder() / ("spotter-quick" if options.quick else "spotter")
    options.folder.mkdir(parents=True, exist_ok=True)
    data = words(options)
    rows = []
    for seed in options.seeds:
        rows.append(measure(seed, data, options))
        print(rows[-1], flush=True)
    drop, flash = statistics.mean(row.drop for row in rows), statistics.mean(row.flash for row in rows)
    cells = [
        (
            str(row.seed),
            f"{row.share:.1%}",
            " -> ".join(f"{each:.4f}" for each in row.validation),
            " -> ".join(f"{each:.4f}" for each in row.test),
            f"{row.drop:+.4f}",
            " -> ".join(f"{each:,}" for each in row.mcu),
            f"{row.flash:.3f}",
            str(row.decoded),
            " -> ".join(f"{each:,}" for each in row.ethos),
            f"{row.ethos[1] / row.ethos[0]:.3f}",
        )
        for row in rows
    ]
    verdicts = (verdict(drop, DROP), verdict(flash, FLASH))
    cells.append(("mean", "", "", verdicts[0], f"{drop:+.4f}", verdicts[1], f"{flash:.3f}", "", "", ""))
    heads = ("seed", "left", "validation", "test", "lost", "flash, TFLM", "of plain", "records", "flash, Ethos-U55", "")
    caption = f"Plain int8 -> {options.values} values, quantization-aware. Asked: flash at most {FLASH}, {DROP} lost.\n"
    print_table(
        "Keyword spotting", heads, cells, caption + machine("tensorflow", "keras", "tflite-micro", "ethos-u-vela")
    )
    return int("MISSED" in verdicts)


if __name__ == "__main__":
    raise SystemExit(main())
