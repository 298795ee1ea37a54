/**
 * LiteRT.js under Node: frames of requests on the standard input, frames of answers on the standard output.
 *
 *     node [--experimental-wasm-relaxed-simd] node_host.mjs FOLDER relaxed|plain
 *
 * FOLDER holds node_modules/@litertjs.
 */

import fs from 'node:fs';

import {Engine, hasRelaxedSimd, pack} from './engine.mjs';
import {startLiteRt} from './node_litert.mjs';

const [folder, simd] = process.argv.slice(2);

// The standard output carries frames only: all that the runtime prints goes into the answers.
let log = [];
const note = (...words) => void log.push(words.map(String).join(' '));
for (const name of ['log', 'info', 'warn', 'error', 'debug']) console[name] = note;

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
  engine = new Engine(await startLiteRt(folder, simd, note));
  return [{runtime: `Node ${process.versions.node}`, simd}, []];
});

for (let length = read(4); length; length = read(4)) {
  const header = JSON.parse(new TextDecoder().decode(read(new DataView(length.buffer).getUint32(0, true))));
  const blobs = header.sizes.map((size) => read(size));
  await attempt(() => engine.answer(header, blobs));
}
