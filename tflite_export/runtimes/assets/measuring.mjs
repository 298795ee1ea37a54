/** What the pages that measure files share: the device, LiteRT.js, files checked and then timed in turn. */

import {Engine, clockStep, hasRelaxedSimd} from './engine.mjs';

export const WARM_UP = 5;

/** Returns a text with an escape for each character that would not be seen or would turn the direction of reading. */
export const plain = (text) =>
  text.replace(/(?![\n\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (found) =>
    found
      .split('')
      .map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
      .join(''),
  );

/** Returns an element with attributes and children; strings become plain text, never markup. */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((child) => (typeof child === 'string' ? plain(child) : child)));
  return made;
}

/** Returns a promise that is kept after some milliseconds. */
export const pause = (milliseconds = 0) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/** Returns the bytes that the server has under a path. */
export async function get(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`the server answered ${response.status} to '${path}'`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Returns what the browser tells of the device; what it does not tell is left out. */
export async function describeDevice() {
  const device = {user_agent: navigator.userAgent};
  if (navigator.userAgentData) {
    const more = await navigator.userAgentData.getHighEntropyValues(['model', 'platform', 'platformVersion']);
    device.platform = [more.platform, more.platformVersion].filter(Boolean).join(' ');
    if (more.model) device.model = more.model;
  }
  if (navigator.hardwareConcurrency) device.processors = navigator.hardwareConcurrency;
  if (navigator.deviceMemory) device.memory_gb = navigator.deviceMemory;
  device.simd = hasRelaxedSimd() ? 'relaxed' : 'plain';
  device.clock_step_ms = Number(clockStep().toPrecision(3));
  device.screen = `${screen.width} x ${screen.height} at ${devicePixelRatio}x`;
  return device;
}

const LABELS = {
  user_agent: 'Browser',
  platform: 'System',
  model: 'Model',
  processors: 'Processors',
  memory_gb: 'Memory, GB',
  simd: 'WebAssembly SIMD',
  clock_step_ms: 'Clock resolution, ms',
  screen: 'Screen',
};

/** Shows what the browser tells of the device. */
export function showDevice(device) {
  document.getElementById('device').replaceChildren(
    ...Object.entries(device).map(([key, value]) =>
      element('div', {}, element('dt', {}, LABELS[key]), element('dd', {}, String(value))),
    ),
  );
}

let engine;

/** What LiteRT.js calls an error, by printing: it does not throw where it cannot allocate. */
const said = [];
const print = console.error;
console.error = (...words) => {
  if (String(words[0]).startsWith('ERROR')) said.push(words.join(' '));
  print(...words);
};

/** Loads LiteRT.js, once. */
async function loadEngine() {
  if (engine) return engine;
  const litert = await import('./litertjs/core.mjs');
  const build = hasRelaxedSimd() ? 'litert_wasm_internal.js' : 'litert_wasm_compat_internal.js';
  await litert.loadLiteRt(new URL(`litertjs/${build}`, document.baseURI).href);
  engine = new Engine(litert);
  return engine;
}

/** Loads a file and compares its outputs with the expected ones; a file that fails does not stay loaded. */
async function check(job, file, content) {
  const loaded = await engine.load(content);
  try {
    return await compare(job, file, loaded);
  } catch (error) {
    engine.unload(loaded.id);
    throw error;
  }
}

/** Runs the samples of a file that was loaded. */
async function compare(job, file, loaded) {
  const row = {id: loaded.id, agrees: true, max_difference: 0};
  const before = said.length;
  for (const sample of file.samples) {
    const byName = Object.fromEntries(file.inputs.map((name, i) => [name, job.blobs[sample.feeds[i]]]));
    engine.feed(loaded.id, loaded.inputs.map(({name}) => byName[name]));
    await engine.invoke(loaded.id);
    const outputs = await engine.fetch(loaded.id);
    file.outputs.forEach(({name, bound, scale}, i) => {
      const place = loaded.outputs.findIndex((output) => output.name === name);
      const got = outputs[place];
      const wanted = new got.constructor(job.blobs[sample.outputs[i]].buffer);
      let largest = got.length === wanted.length ? 0 : Infinity;
      for (let k = 0; k < got.length; k++) {
        const off = Math.abs(got[k] - wanted[k]);
        if (!(off <= largest)) largest = Number.isNaN(off) ? Infinity : off;
      }
      row.max_difference = Math.max(row.max_difference, largest / (scale || 1));
      if (!(largest <= bound)) row.agrees = false;
    });
  }
  if (!row.agrees) row.said = said.slice(before);
  return row;
}

/**
 * Checks all files, and times those that agree, in turn; leaves none loaded.
 *
 * Returns a row for each file, with its column in the times if it was timed; the times, [rounds][timed]; and the step
 * of the clock.
 *
 * `say` is called with what happens, `onFile` before each file is loaded (and with null before they are timed), `onRound`
 * after each round. With `stopAtError` no file is loaded after one that failed: it may have broken the runtime.
 */
export async function measure(job, rounds, {say, onFile = async () => {}, onRound = () => {}, stopAtError = false}) {
  say('Loading LiteRT.js …');
  await loadEngine();
  const rows = [];
  let measured = {times: [], step: clockStep(), repeats: []};
  let broken = false;
  try {
    for (const [i, file] of job.files.entries()) {
      say(`Checking ${file.name} (${i + 1} of ${job.files.length}) …`);
      await onFile(i);
      const content = await get(file.path);
      await pause();
      try {
        rows.push(await check(job, file, content));
      } catch (error) {
        rows.push({error: String(error?.message ?? error)});
        broken = stopAtError;
        if (broken) break;
      }
    }
    const timed = broken ? [] : rows.filter((row) => row.agrees);
    if (timed.length) {
      say(`Measuring ${timed.length} of ${job.files.length} files …`);
      await onFile(null);
      measured = await engine.time(timed.map((row) => row.id), rounds, WARM_UP, async (done) => {
        onRound(done);
        await pause(); // the page stays alive between rounds
      });
    }
    timed.forEach((row, column) => Object.assign(row, {column, runs_a_sample: measured.repeats[column]}));
  } finally {
    for (const row of rows) {
      if (row.id !== undefined) engine.unload(row.id);
      delete row.id;
    }
  }
  return {rows, times: measured.times, step: measured.step};
}
