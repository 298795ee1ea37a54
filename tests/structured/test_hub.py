"""keras-hub's own models, small and at random: half of the heads and of the feed-forward width really go."""

import keras
import numpy as np
import pytest

import tflite_export as tx
from keras_prune.structured import Plan, analyse

hub = pytest.importorskip("keras_hub", reason="keras-hub is not installed: pip install 'keras-prune[hub]'")

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*layers made of layers keep their classes", "ignore::UserWarning:keras"
)

RNG = np.random.default_rng(0)
TOKENS = RNG.integers(1, 30, (4, 6)).astype("int32")
PADDING = np.array([[1] * 6, [1] * 4 + [0] * 2] * 2, "int32")
TEXT = {"token_ids": TOKENS, "padding_mask": PADDING}
IMAGES = RNG.normal(size=(4, 16, 16, 3)).astype("float32")
SIZES = {"vocabulary_size": 30, "num_layers": 1, "num_heads": 4, "hidden_dim": 16, "intermediate_dim": 32}


def bert():
    return hub.models.BertBackbone(**SIZES, max_sequence_length=8), {**TEXT, "segment_ids": PADDING}


def gpt2():
    return hub.models.GPT2Backbone(**SIZES, max_sequence_length=8), TEXT


def vit():
    sizes = {"patch_size": 4, "num_layers": 1, "num_heads": 4, "hidden_dim": 16, "mlp_dim": 32}
    return hub.models.ViTBackbone(image_shape=(16, 16, 3), **sizes), IMAGES


def whisper():
    lengths = {"max_encoder_sequence_length": 8, "max_decoder_sequence_length": 8, "num_mels": 5}
    features = RNG.normal(size=(4, 8, 5)).astype("float32")
    inputs = {"encoder_features": features, "decoder_token_ids": TOKENS, "decoder_padding_mask": PADDING}
    return hub.models.WhisperBackbone(**SIZES, **lengths), inputs


def gemma():
    sizes = {"num_query_heads": 4, "num_key_value_heads": 1, "hidden_dim": 16, "intermediate_dim": 64, "head_dim": 8}
    return hub.models.GemmaBackbone(vocabulary_size=30, num_layers=1, **sizes), TEXT


def t5():
    text = {"encoder_token_ids": TOKENS, "encoder_padding_mask": PADDING}
    return hub.models.T5Backbone(**SIZES), {**text, "decoder_token_ids": TOKENS, "decoder_padding_mask": PADDING}


def swin():
    sizes = {"patch_size": 4, "embed_dim": 8, "depths": (1, 1), "num_heads": (2, 2), "window_size": 2}
    return hub.models.SwinTransformerBackbone(image_shape=(16, 16, 3), **sizes), IMAGES


def segformer():
    layers = {"layerwise_depths": [1], "layerwise_num_heads": [2], "layerwise_sr_ratios": [2]}
    patches = {"layerwise_patch_sizes": [7], "layerwise_strides": [4]}
    widths = {"num_layers": 1, "hidden_dims": [8], "max_drop_path_rate": 0.1}
    encoder = hub.models.MiTBackbone(image_shape=(16, 16, 3), **layers, **patches, **widths)
    return hub.models.SegFormerBackbone(image_encoder=encoder, projection_filters=12), IMAGES


def heads_and_hidden(analysis, heads, hidden):
    """Of every group of so many units the first half goes; how many groups of each kind there are."""
    keep = np.ones(analysis.size, bool)
    found = {heads: 0, hidden: 0}
    for group in analysis.groups:
        slot = analysis.slots[group.slots[0]]
        is_heads = slot.variable is not None and len(slot.variable.shape) == 3 and slot.axis < 2
        if group.size == hidden or (group.size == heads and is_heads):
            keep[group.start : group.start + group.size // 2] = False
            found[group.size] += 1
    return keep, found


def zeroed(model, analysis, keep):
    for variable in model.weights:
        value = RNG.normal(0.0, 0.3, variable.shape)
        if str(variable.dtype).startswith("float"):
            variable.assign(np.abs(value) + 0.5 if variable.name in ("gamma", "scale", "moving_variance") else value)
    for slot in analysis.slots:
        gone = np.flatnonzero((slot.units >= 0) & ~keep[slot.units])
        if slot.variable is not None and gone.size:
            value = np.array(slot.variable)
            np.moveaxis(value, slot.axis, 0)[gone] = 0.0
            slot.variable.assign(value)


@pytest.mark.parametrize(
    ("make", "heads", "hidden"), [(bert, 1, 1), (vit, 1, 1), (gpt2, 1, 1), (whisper, 3, 2), (gemma, 1, 1)]
)
def test_half_of_heads_and_hidden_width_go_exactly(make, heads, hidden, tmp_path):
    model, x = make()
    analysis = analyse(model)
    keep, found = heads_and_hidden(analysis, 4, 32)
    assert found == {4: heads, 32: hidden}
    loaded = check_exact_and_loaded(model, analysis, keep, x, tmp_path)

    # A file that is not verified is not written. TFLite has no operator for Gemma's masks of free lengths.
    shapes = {name: (1, 6) for name in TEXT} if make is gemma else None
    tx.export(loaded, tmp_path / "m.tflite", data=x, shapes=shapes)
    assert (tmp_path / "m.tflite").stat().st_size > 1000
    check_trains(loaded, x)


@pytest.mark.parametrize(
    ("make", "sizes", "whole"),
    [
        # The heads that attend to the encoder meet a constant with an entry for each of them.
        (t5, [4, 32, 4, 32], "cross_attention/query_projector/kernel"),
        # call() of the others reads the width of queries, keys and values from the layer's input.
        (swin, [32, 64], "attn/attention_qkv/kernel"),
        (segformer, [32, 12], "seg_former_multihead_attention/dense/kernel"),
    ],
)
def test_half_of_what_can_go_goes_exactly(make, sizes, whole, tmp_path):
    model, x = make()
    analysis = analyse(model)
    assert [group.size for group in analysis.groups] == sizes
    assert any(skipped.path.endswith(whole) for skipped in analysis.skipped)
    keep = np.ones(analysis.size, bool)
    for group in analysis.groups:
        keep[group.start : group.start + group.size // 2] = False
    # Compiling a step takes longer than all the rest, and is tried on the models above.
    check_trains(check_exact_and_loaded(model, analysis, keep, x, tmp_path), x, run_eagerly=True)


def check_exact_and_loaded(model, analysis, keep, x, tmp_path):
    """The smaller model answers as the whole one with zeros, has the planned size, and is saved and loaded."""
    zeroed(model, analysis, keep)
    smaller = Plan(analysis, keep).apply()
    wanted, received = (keras.tree.flatten(one(x, training=False)) for one in (model, smaller))
    for a, b in zip(wanted, received, strict=True):
        spread = np.std(np.asarray(a), axis=0).max()
        assert spread > 0.05  # outputs tell samples apart
        assert np.abs(np.asarray(a) - np.asarray(b)).max() <= 1e-5 * np.abs(np.asarray(a)).max()
    assert smaller.count_params() == Plan(analysis, keep).after.params < model.count_params()

    smaller.save(tmp_path / "m.keras")
    loaded = keras.saving.load_model(tmp_path / "m.keras")
    for a, b in zip(received, keras.tree.flatten(loaded(x, training=False)), strict=True):
        np.testing.assert_array_equal(a, b)
    return loaded


def check_trains(loaded, x, **options):
    head = keras.Model(loaded.inputs, keras.ops.mean(received_symbol(loaded), axis=-1))
    head.compile("sgd", "mse", **options)
    before = head.get_weights()
    head.fit(x, np.zeros(head(x).shape), epochs=1, verbose=0)
    assert sum((a != b).any() for a, b in zip(before, head.get_weights(), strict=True)) > len(before) // 2


def received_symbol(model):
    return keras.tree.flatten(model.output)[-1]
