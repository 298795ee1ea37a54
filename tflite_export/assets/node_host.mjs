/**
 * LiteRT.js under Node: frames of requests on the standard input, frames of answers on the standard output.
 *
 *     node [--experimental-wasm-relaxed-simd] node_host.mjs FOLDER relaxed|plain
 *
 * FOLDER holds node_modules/@litertjs. LiteRT.js expects a browser's worker: it is given `self`, an `importScripts` that
 * runs a file in this context, and the bytes of the WebAssembly module, so that it fetches nothing.
 */

import fs from 'node:fs';
import {createRequire} from 'node:module';
import path from 'node:path';
import {fileURLToPath, pathToFileURL} from 'node:url';
import vm from 'node:vm';

import {Engine, hasRelaxedSimd, pack} from './engine.mjs';

const [folder, simd] = process.argv.slice(2);
const wasm = path.join(folder, 'node_modules', '@litertjs', 'core', 'wasm');
const script = path.join(wasm, simd === 'relaxed' ? 'litert_wasm_internal.js' : 'litert_wasm_compat_internal.js');

// The standard output carries frames only: all that the runtime prints goes into the answers.
let log = [];
const note = (...words) => void log.push(words.map(String).join(' '));
for (const name of ['log', 'info', 'warn', 'error', 'debug']) console[name] = note;

async function start() {
  globalThis.self = globalThis;
  globalThis.require = createRequire(import.meta.url);
  globalThis.__filename = fileURLToPath(import.meta.url);
  globalThis.__dirname = path.dirname(globalThis.__filename);
  globalThis.importScripts = (file) => vm.runInThisContext(fs.readFileSync(file, 'utf8'), {filename: file});
  globalThis.Module = {
    wasmBinary: fs.readFileSync(script.replace(/\.js$/, '.wasm')),
    locateFile: (name) => path.join(wasm, name),
    print: note,
    printErr: note,
  };
  const litert = await import(pathToFileURL(path.join(folder, 'node_modules', '@litertjs', 'core', 'dist', 'index.js')));
  await litert.loadLiteRt(script);
  return new Engine(litert);
}

/** Reads so many bytes from the standard input; null at its end. */
function read(count) {
  const bytes = new Uint8Array(count);
  let got = 0;
  while (got < count) {
    const more = fs.readSync(0, bytes, got, count - got, null);
    if (more === 0) return null;
    got += more;
  }
  return bytes;
}

function write(header, blobs) {
  const bytes = pack({...header, log}, blobs);
  log = [];
  for (let sent = 0; sent < bytes.byteLength; ) sent += fs.writeSync(1, bytes, sent);
}

async function attempt(work) {
  try {
    write(...(await work()));
  } catch (error) {
    write({error: String(error?.message ?? error)}, []);
  }
}

let engine;
await attempt(async () => {
  if (simd === 'relaxed' && !hasRelaxedSimd()) throw new Error('this Node has no relaxed SIMD');
  engine = await start();
  return [{runtime: `Node ${process.versions.node}`, simd}, []];
});

for (let length = read(4); length; length = read(4)) {
  const header = JSON.parse(new TextDecoder().decode(read(new DataView(length.buffer).getUint32(0, true))));
  const blobs = header.sizes.map((size) => read(size));
  await attempt(() => engine.answer(header, blobs));
}
