/**
 * What LiteRT.js is asked to do: load files, feed, run, fetch, time them in turn. The same under Node and in a browser.
 *
 * A message is a frame: 4 bytes of length (little-endian), a JSON header of that length, and after it the blobs
 * whose sizes the header lists. Python's side is `tflite_export.processes.frames`.
 */

const TYPES = {float32: Float32Array, int32: Int32Array, uint8: Uint8Array};

/** A sample of time spans so many ticks of the clock: browsers round it to 0.1 or 1 ms against side channels. */
const TICKS = 50;

/** Returns the bytes of a frame. */
export function pack(header, blobs = []) {
  const json = new TextEncoder().encode(JSON.stringify({...header, sizes: blobs.map((blob) => blob.byteLength)}));
  const total = blobs.reduce((sum, blob) => sum + blob.byteLength, 4 + json.byteLength);
  const bytes = new Uint8Array(total);
  new DataView(bytes.buffer).setUint32(0, json.byteLength, true);
  bytes.set(json, 4);
  let offset = 4 + json.byteLength;
  for (const blob of blobs) {
    bytes.set(new Uint8Array(blob.buffer, blob.byteOffset, blob.byteLength), offset);
    offset += blob.byteLength;
  }
  return bytes;
}

/** Returns [header, blobs, bytes used] of a frame, or null where bytes are missing. */
export function unpack(bytes) {
  if (bytes.byteLength < 4) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const length = view.getUint32(0, true);
  if (bytes.byteLength < 4 + length) return null;
  const header = JSON.parse(new TextDecoder().decode(bytes.subarray(4, 4 + length)));
  let offset = 4 + length;
  if (bytes.byteLength < header.sizes.reduce((sum, size) => sum + size, offset)) return null;
  const blobs = header.sizes.map((size) => {
    const blob = bytes.slice(offset, offset + size); // a copy: typed arrays need an aligned start
    offset += size;
    return blob;
  });
  return [header, blobs, offset];
}

/** Returns the smallest step of the clock, in milliseconds. */
export function clockStep() {
  let smallest = Infinity;
  for (let i = 0; i < 10; i++) {
    const start = performance.now();
    let now = start;
    while (now === start) now = performance.now();
    smallest = Math.min(smallest, now - start);
  }
  return smallest;
}

/** Whether this engine of JavaScript validates an instruction of relaxed SIMD (i8x16.relaxed_swizzle). */
export function hasRelaxedSimd() {
  const body = [65, 1, 253, 15, 65, 2, 253, 15, 253, 128, 2, 11];
  return WebAssembly.validate(
    new Uint8Array([0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 15, 1, 13, 0, ...body]),
  );
}

/** Returns the quantile of an array of numbers, interpolated as NumPy does. */
export function quantile(values, share) {
  const sorted = Float64Array.from(values).sort();
  const place = (sorted.length - 1) * share;
  const low = Math.floor(place);
  const high = Math.min(low + 1, sorted.length - 1);
  return sorted[low] + (place - low) * (sorted[high] - sorted[low]);
}

/** Files loaded into LiteRT.js. */
export class Engine {
  #litert;
  #models = new Map();
  #loaded = 0;

  /** @param litert the module @litertjs/core, after its loadLiteRt. */
  constructor(litert) {
    this.#litert = litert;
  }

  /** Loads a file; returns its number, and the names, types and shapes of its inputs and outputs. */
  async load(bytes) {
    const model = await this.#litert.loadAndCompile(bytes, {accelerator: 'wasm', cpuOptions: {numThreads: 1}});
    const signature = model.signatures['serving_default'] ?? Object.values(model.signatures)[0];
    const details = (list) => list.map(({name, dtype, shape}) => ({name, dtype, shape: Array.from(shape)}));
    const inputs = details(signature.getInputDetails());
    const outputs = details(signature.getOutputDetails());
    const id = this.#loaded++;
    this.#models.set(id, {model, signature, inputs, outputs, tensors: [], results: []});
    return {id, inputs, outputs};
  }

  /** Sets the inputs of a file, bytes in the order of its inputs. */
  feed(id, blobs) {
    const entry = this.#models.get(id);
    entry.tensors.forEach((tensor) => tensor.delete());
    entry.tensors = entry.inputs.map(({dtype, shape}, i) => {
      const values = new TYPES[dtype](blobs[i].buffer, blobs[i].byteOffset, blobs[i].byteLength / TYPES[dtype].BYTES_PER_ELEMENT);
      return new this.#litert.Tensor(values, shape);
    });
  }

  /** Runs a file once, on the inputs that were set. */
  async invoke(id) {
    const entry = this.#models.get(id);
    const results = await entry.signature.run(entry.tensors);
    entry.results.forEach((tensor) => tensor.delete());
    entry.results = results;
  }

  /** Returns the outputs of the last run, typed arrays in the order of the file's outputs. */
  async fetch(id) {
    return Promise.all(this.#models.get(id).results.map((tensor) => tensor.data()));
  }

  /**
   * Runs files in turn, round by round; returns milliseconds a run, [rounds][files].
   *
   * Where the clock is coarse, a sample is the mean of as many runs as make it TICKS steps of the clock long.
   */
  async time(ids, rounds, warmUp, onRound = async () => {}) {
    const step = clockStep();
    const repeats = [];
    for (const id of ids) {
      await this.invoke(id);
      const start = performance.now();
      let runs = 0;
      do {
        await this.invoke(id);
        runs++;
      } while (runs < warmUp || performance.now() - start < 2 * step);
      const once = (performance.now() - start) / runs;
      repeats.push(Math.max(1, Math.ceil((TICKS * step) / once)));
    }
    const times = [];
    for (let round = 0; round < rounds; round++) {
      const row = [];
      for (let i = 0; i < ids.length; i++) {
        const start = performance.now();
        for (let run = 0; run < repeats[i]; run++) await this.invoke(ids[i]);
        row.push((performance.now() - start) / repeats[i]);
      }
      times.push(row);
      await onRound(round + 1);
    }
    return {times, step, repeats};
  }

  /** Frees a file. */
  unload(id) {
    const entry = this.#models.get(id);
    [...entry.tensors, ...entry.results].forEach((tensor) => tensor.delete());
    entry.model.delete();
    this.#models.delete(id);
  }

  /** Answers one request: [header, blobs] -> [header, blobs]. */
  async answer(header, blobs) {
    switch (header.do) {
      case 'load':
        return [await this.load(blobs[0]), []];
      case 'feed':
        this.feed(header.id, blobs);
        return [{}, []];
      case 'invoke':
        await this.invoke(header.id);
        return [{}, []];
      case 'fetch':
        return [{}, await this.fetch(header.id)];
      case 'time': {
        const {times, step, repeats} = await this.time(header.ids, header.rounds, header.warmUp);
        return [{step, repeats}, [Float64Array.from(times.flat())]];
      }
      case 'unload':
        this.unload(header.id);
        return [{}, []];
      default:
        throw new Error(`unknown request '${header.do}'`);
    }
  }
}
