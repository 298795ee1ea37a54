"""Where files run beside the LiteRT of this process: other processes, WebAssembly, aarch64."""
