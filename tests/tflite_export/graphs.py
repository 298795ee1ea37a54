"""Small .tflite graphs, written operator by operator."""

from __future__ import annotations

import numpy as np
from ai_edge_litert import schema_py_generated as schema

from tflite_export.file import flatbuffer
from tflite_export.file.encoding import encode_csr

FLOAT, HALF, BYTE, WHOLE = (getattr(schema.TensorType, name) for name in ("FLOAT32", "FLOAT16", "INT8", "INT32"))
TYPES = {np.dtype("f4"): FLOAT, np.dtype("f2"): HALF, np.dtype("i1"): BYTE, np.dtype("i4"): WHOLE}


class Net:
    """A graph of one subgraph; each method adds an operator and returns its output tensor."""

    def __init__(self, *shape, kind=FLOAT):
        self.model = schema.ModelT(
            version=3, operatorCodes=[], buffers=[schema.BufferT()], subgraphs=[schema.SubGraphT(operators=[])]
        )
        self.graph = self.model.subgraphs[0]
        self.graph.tensors = []
        self.x = self.tensor(shape, kind)
        self.graph.inputs = np.array([self.x], dtype=np.int32)

    def tensor(self, shape, kind=FLOAT, buffer=0):
        name = f"t{len(self.graph.tensors)}".encode()
        sizes = np.array(shape, dtype=np.int32)
        self.graph.tensors.append(schema.TensorT(shape=sizes, type=kind, buffer=buffer, name=name))
        return len(self.graph.tensors) - 1

    def shape(self, tensor):
        return tuple(int(size) for size in self.graph.tensors[tensor].shape)

    def constant(self, values):
        values = np.asarray(values, order="C")
        return self.tensor(values.shape, TYPES[values.dtype], flatbuffer.add_buffer(self.model, values))

    def weights(self, shape, zeros=0.9, sparse=True, dtype=np.float32):
        """A constant with exactly so many zeros; behind a DENSIFY where it is sparse."""
        size = int(np.prod(shape))
        values = np.ones(size, dtype)
        values[np.random.default_rng(0).permutation(size)[: round(zeros * size)]] = 0
        values = values.reshape(shape)
        if not sparse:
            return self.constant(values)
        stored = encode_csr(values)
        root = self.tensor(shape, TYPES[values.dtype], flatbuffer.add_buffer(self.model, stored.values))
        self.graph.tensors[root].sparsity = flatbuffer.sparsity_parameters(stored)
        return self.op("DENSIFY", [root], shape, schema.DensifyOptionsT(), kind=TYPES[values.dtype])

    def op(self, name, inputs, shape, options=None, kind=FLOAT, version=1):
        code = flatbuffer.operator_code(self.model, getattr(schema.BuiltinOperator, name), version)
        output = self.tensor(shape, kind)
        number = 0 if options is None else getattr(schema.BuiltinOptions, type(options).__name__[:-1])
        self.graph.operators.append(
            schema.OperatorT(
                opcodeIndex=code,
                inputs=np.array(inputs, dtype=np.int32),
                outputs=np.array([output], dtype=np.int32),
                builtinOptionsType=number,
                builtinOptions=options,
            )
        )
        return output

    def conv(self, x, channels, kernel=1, stride=1, padding="VALID", zeros=0.9, sparse=None, dilation=1, groups=1):
        batch, height, width, depth = self.shape(x)
        sparse = kernel == 1 if sparse is None else sparse
        weights = self.weights((channels, kernel, kernel, depth // groups), zeros if kernel == 1 else 0, sparse)
        options = schema.Conv2DOptionsT(padding=getattr(schema.Padding, padding), strideH=stride, strideW=stride)
        options.dilationHFactor = options.dilationWFactor = dilation
        size = self._size((height, width), kernel, stride, padding, dilation)
        return self.op("CONV_2D", [x, weights, self.bias(channels)], (batch, *size, channels), options)

    def depthwise(self, x, kernel=3, stride=1, padding="SAME", multiplier=1, dilation=1):
        batch, height, width, depth = self.shape(x)
        weights = self.weights((1, kernel, kernel, depth * multiplier), 0, False)
        options = schema.DepthwiseConv2DOptionsT(
            padding=getattr(schema.Padding, padding), strideH=stride, strideW=stride, depthMultiplier=multiplier
        )
        options.dilationHFactor = options.dilationWFactor = dilation
        size = self._size((height, width), kernel, stride, padding, dilation)
        shape = (batch, *size, depth * multiplier)
        return self.op("DEPTHWISE_CONV_2D", [x, weights, self.bias(depth * multiplier)], shape, options)

    def _size(self, sizes, kernel, stride, padding, dilation):
        reach = 1 if padding == "SAME" else dilation * (kernel - 1) + 1
        return tuple((size - reach) // stride + 1 for size in sizes)

    def bias(self, channels):
        return self.constant(np.zeros(channels, np.float32))

    def pad(self, x, top, bottom, left, right):
        batch, height, width, depth = self.shape(x)
        pads = np.array([[0, 0], [top, bottom], [left, right], [0, 0]], dtype=np.int32)
        shape = (batch, height + top + bottom, width + left + right, depth)
        return self.op("PAD", [x, self.constant(pads)], shape, schema.PadOptionsT())

    def mean(self, x, keep=False, axes=(1, 2), name="MEAN"):
        shape = [1 if i in axes else s for i, s in enumerate(self.shape(x)) if keep or i not in axes]
        inputs = [x, self.constant(np.array(axes, dtype=np.int32))]
        return self.op(name, inputs, shape, schema.ReducerOptionsT(keepDims=keep))

    def dense(self, x, units, zeros=0.0, sparse=False, keep=False):
        shape = (*self.shape(x)[:-1], units) if keep else (1, units)
        options = schema.FullyConnectedOptionsT(keepNumDims=keep)
        weights = self.weights((units, self.shape(x)[-1]), zeros, sparse)
        return self.op("FULLY_CONNECTED", [x, weights, -1], shape, options)

    def unary(self, x, name):
        return self.op(name, [x], self.shape(x))

    def binary(self, a, b, name="ADD"):
        options = {"ADD": schema.AddOptionsT, "MUL": schema.MulOptionsT, "SUB": schema.SubOptionsT}[name]()
        return self.op(name, [a, b], max(self.shape(a), self.shape(b), key=np.prod), options)

    def pool(self, x, name="MAX_POOL_2D", size=2):
        batch, height, width, depth = self.shape(x)
        options = schema.Pool2DOptionsT(padding=1, strideH=size, strideW=size, filterHeight=size, filterWidth=size)
        return self.op(name, [x], (batch, height // size, width // size, depth), options)

    def stem(self, channels=8):
        return self.conv(self.pad(self.x, 1, 1, 1, 1), channels, kernel=3, stride=2)

    def block(self, x, zeros=0.9, sparse=True):
        return self.conv(self.depthwise(x), self.shape(x)[-1], zeros=zeros, sparse=sparse)

    def build(self, *outputs):
        self.graph.outputs = np.array(outputs, dtype=np.int32)
        return flatbuffer.read(self.content(*outputs))

    def content(self, *outputs):
        self.graph.outputs = np.array(outputs, dtype=np.int32)
        return flatbuffer.write(self.model)


def fill(elements):
    """A file of one operator, whose output has so many float32."""
    tensor, options = schema.TensorT, schema.BuiltinOptions.FillOptions
    graph = schema.SubGraphT(
        tensors=[
            tensor(shape=[1], type=schema.TensorType.INT32, buffer=1, name=b"sizes"),
            tensor(shape=[], type=schema.TensorType.FLOAT32, buffer=0, name=b"x"),
            tensor(shape=[elements], type=schema.TensorType.FLOAT32, buffer=0, name=b"y"),
        ],
        inputs=[1],
        outputs=[2],
        operators=[
            schema.OperatorT(
                inputs=[0, 1], outputs=[2], builtinOptionsType=options, builtinOptions=schema.FillOptionsT()
            )
        ],
    )
    code = schema.BuiltinOperator.FILL
    model = schema.ModelT(
        version=3,
        operatorCodes=[schema.OperatorCodeT(builtinCode=code, deprecatedBuiltinCode=code, version=3)],
        subgraphs=[graph],
        buffers=[schema.BufferT(), schema.BufferT(data=np.array([elements], dtype=np.int32).view(np.uint8))],
    )
    return flatbuffer.write(model)
