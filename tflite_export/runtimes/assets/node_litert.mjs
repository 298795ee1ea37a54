/**
 * Starts LiteRT.js under Node. It expects a browser's worker: it is given `self`, an `importScripts` that runs a file in
 * this context, and the bytes of the WebAssembly module, so that it fetches nothing.
 */

import fs from 'node:fs';
import {createRequire} from 'node:module';
import path from 'node:path';
import {fileURLToPath, pathToFileURL} from 'node:url';
import vm from 'node:vm';

/**
 * Returns the module @litertjs/core, after its loadLiteRt.
 *
 * @param folder holds node_modules/@litertjs
 * @param simd "relaxed" or "plain"
 * @param note is told what the runtime prints
 */
export async function startLiteRt(folder, simd, note) {
  const packages = path.join(folder, 'node_modules', '@litertjs');
  const wasm = path.join(packages, 'core', 'wasm');
  const script = path.join(wasm, simd === 'relaxed' ? 'litert_wasm_internal.js' : 'litert_wasm_compat_internal.js');
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
  const litert = await import(pathToFileURL(path.join(packages, 'core', 'dist', 'index.js')));
  await litert.loadLiteRt(script);
  return litert;
}
