"""LiteRT.js, under Node and in browsers: where WebAssembly has XNNPACK's sparse kernels."""
