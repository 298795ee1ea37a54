"""Two matrices, as files of many widths and one interface."""

from ai_edge_litert import schema_py_generated as schema

from tests.tflite_export.graphs import Net


def perceptron(width, features=64):
    """A file that multiplies [1, features] by matrices to `width`, again to `width`, and to 8."""
    net = Net(1, features)
    return net.content(net.dense(net.dense(net.dense(net.x, width), width), 8))


def image_net(channels, broken=False):
    """A file of 1x1 convolutions; or one that LiteRT.js cannot allocate, and whose outputs are garbage there."""
    net = Net(1, 16, 16, 3)
    x = net.mean(net.conv(net.conv(net.stem(), channels), channels), keep=broken)
    return net.content(net.conv(x, 8) if broken else net.dense(x, 8))


def of_bool():
    """A file that casts flags to floats."""
    net = Net(1, 4, kind=schema.TensorType.BOOL)
    return net.content(net.op("CAST", [net.x], (1, 4), schema.CastOptionsT()))
