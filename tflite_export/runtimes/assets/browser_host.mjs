/** LiteRT.js in a browser that a program drives: it fetches one request after the other, and posts the answers. */

import {Engine, hasRelaxedSimd, pack, unpack} from './engine.mjs';
import * as litert from './litertjs/core.mjs';

let log = [];
for (const name of ['log', 'info', 'warn', 'error', 'debug']) {
  console[name] = (...words) => void log.push(words.map(String).join(' '));
}

async function post(path, body) {
  const response = await fetch(path, {method: 'POST', body});
  if (!response.ok) throw new Error(`the program answered ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}

async function attempt(work) {
  let answer;
  try {
    const [header, blobs] = await work();
    answer = pack({...header, log}, blobs);
  } catch (error) {
    answer = pack({error: String(error?.message ?? error), log});
  }
  log = [];
  await post('answer', answer);
}

let engine;
await attempt(async () => {
  const simd = new URLSearchParams(location.search).get('simd');
  if (simd === 'relaxed' && !hasRelaxedSimd()) throw new Error('this browser has no relaxed SIMD');
  const name = simd === 'relaxed' ? 'litert_wasm_internal.js' : 'litert_wasm_compat_internal.js';
  await litert.loadLiteRt(new URL(`litertjs/${name}`, location.href.split('?')[0]).href);
  engine = new Engine(litert);
  const runtime = navigator.userAgent.match(/(?:Headless)?Chrome\/[\d.]+/)?.[0] ?? navigator.userAgent;
  return [{runtime, simd}, []];
});

for (;;) {
  const bytes = await post('next', '');
  if (bytes.byteLength === 0) continue; // nothing to do yet
  const [header, blobs] = unpack(bytes);
  await attempt(() => engine.answer(header, blobs));
}
