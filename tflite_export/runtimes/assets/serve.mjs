/** The page that measures files in the browser that opened it. */

import {Engine, clockStep, hasRelaxedSimd, quantile, unpack} from './engine.mjs';

const WARM_UP = 5;
const $ = (id) => document.getElementById(id);

/** Returns a text with an escape for each character that would not be seen or would turn the direction of reading. */
const plain = (text) =>
  text.replace(/(?![\n\u200c\u200d])[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/gu, (found) =>
    found
      .split('')
      .map((unit) => `\\u${unit.charCodeAt(0).toString(16).padStart(4, '0')}`)
      .join(''),
  );

/** Returns an element with attributes and children; strings become plain text, never markup. */
function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children.map((child) => (typeof child === 'string' ? plain(child) : child)));
  return made;
}

const say = (text) => void ($('status').textContent = plain(text));
const digits = (value) => (value < 10 ? value.toFixed(2) : value.toFixed(1));
const milliseconds = (value) => `${digits(value)} ms`;
const megabytes = (bytes) => (bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(2)} MB`);
const pause = () => new Promise((resolve) => setTimeout(resolve, 0));

async function get(path) {
  const response = await fetch(path);
  if (!response.ok) throw new Error(`the server answered ${response.status} to '${path}'`);
  return new Uint8Array(await response.arrayBuffer());
}

/** Returns what the browser tells of the device; what it does not tell is left out. */
async function describeDevice() {
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
  clock_step_ms: 'Step of the clock, ms',
  screen: 'Screen',
};

function showDevice(device) {
  $('device').replaceChildren(
    ...Object.entries(device).map(([key, value]) =>
      element('div', {}, element('dt', {}, LABELS[key]), element('dd', {}, String(value))),
    ),
  );
}

function figure(label, value, style = '') {
  return element('div', {class: style.includes('wide') ? 'wide' : ''}, element('dt', {}, label), element('dd', {class: style}, value));
}

/** Shows the files, with their results where there are any. */
function showFiles(job, rows) {
  const slowest = Math.max(0, ...(rows ?? []).map((row) => row?.median_ms ?? 0));
  $('files').replaceChildren(
    ...job.files.map((file, i) => {
      const row = rows?.[i];
      const title = element('div', {}, element('p', {class: 'name'}, file.name), element('p', {class: 'size'}, megabytes(file.bytes) + (i || job.files.length === 1 ? '' : ', the baseline')));
      const card = element('li', {class: `file panel${i ? '' : ' first'}`, 'data-file': file.name}, title);
      if (!row) return card;
      const agreement = row.error
        ? figure('Not measured', row.error, 'bad wide')
        : row.agrees
          ? figure('Outputs', row.max_difference ? `agree to ${row.max_difference.toExponential(1)}` : 'equal', 'good')
          : figure('Not timed', [`outputs differ by ${row.max_difference.toPrecision(3)}`, ...row.said].join('; '), 'bad wide');
      const figures = element('dl', {class: 'figures'});
      if (row.median_ms !== undefined) {
        figures.append(
          figure('Median', milliseconds(row.median_ms), 'main'),
          figure('Ratio', row.ratio === null ? '–' : `${row.ratio.toFixed(2)} x`, 'main'),
          figure('Quartiles', `${digits(row.low_ms)} – ${milliseconds(row.high_ms)}`),
        );
      }
      figures.append(agreement);
      const body = element('div', {}, figures);
      if (row.median_ms !== undefined) body.append(bar(row.median_ms / slowest));
      card.append(body);
      return card;
    }),
  );
  $('legend').hidden = !rows;
}

/** Returns a bar that fills a share of its track. In SVG: the page's policy forbids style attributes. */
function bar(share) {
  const space = 'http://www.w3.org/2000/svg';
  const svg = document.createElementNS(space, 'svg');
  svg.setAttribute('viewBox', '0 0 100 1');
  svg.setAttribute('preserveAspectRatio', 'none');
  const filled = document.createElementNS(space, 'rect');
  filled.setAttribute('width', String(100 * share));
  filled.setAttribute('height', '1');
  svg.append(filled);
  return element('div', {class: 'track', 'aria-hidden': 'true'}, svg);
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

/** Loads a file and holds its outputs against the golden ones. */
async function check(job, file) {
  const loaded = await engine.load(await get(file.path));
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

/** Measures all files; returns a row for each. */
async function measure(job, rounds) {
  say('Loading LiteRT.js …');
  await loadEngine();
  const rows = [];
  for (const [i, file] of job.files.entries()) {
    say(`Checking ${file.name} (${i + 1} of ${job.files.length}) …`);
    await pause();
    try {
      rows.push(await check(job, file));
    } catch (error) {
      rows.push({error: String(error?.message ?? error)});
    }
  }
  const timed = rows.filter((row) => row.agrees);
  let measured = {times: [], step: clockStep(), repeats: []};
  if (timed.length) {
    say(`Measuring ${timed.length} of ${job.files.length} files …`);
    measured = await engine.time(timed.map((row) => row.id), rounds, WARM_UP, async (done) => {
      $('progress').value = done / rounds;
      await pause(); // the page stays alive between rounds
    });
  }
  timed.forEach((row, column) => {
    const own = measured.times.map((times) => times[column]);
    row.median_ms = quantile(own, 0.5);
    row.low_ms = quantile(own, 0.25);
    row.high_ms = quantile(own, 0.75);
    row.runs_a_sample = measured.repeats[column];
    row.ratio = rows[0].agrees ? quantile(measured.times.map((times) => times[0] / times[column]), 0.5) : null;
  });
  for (const row of rows) {
    if (row.id !== undefined) engine.unload(row.id);
    delete row.id;
  }
  return rows;
}

function resultOf(job, device, rows, rounds, hidden) {
  return {
    tool: job.tool,
    runtime: job.runtime,
    golden: job.golden,
    measured_at: new Date().toISOString(),
    device,
    threads: 1,
    rounds,
    warm_up: WARM_UP,
    page_was_hidden: hidden,
    files: job.files.map(({name, bytes}, i) => ({
      name,
      bytes,
      ...rows[i],
      // JSON has no infinity.
      ...(rows[i].max_difference === Infinity ? {max_difference: 'infinite'} : {}),
    })),
  };
}

/** Copies text; where the page is no secure context, as over http from a phone, by the selection. */
async function copy(text) {
  if (navigator.clipboard && window.isSecureContext) {
    try {
      await navigator.clipboard.writeText(text);
      return true;
    } catch {
      // Not permitted here: the selection may be.
    }
  }
  const area = $('json');
  area.closest('details').open = true;
  area.focus();
  area.select();
  return document.execCommand('copy');
}

async function start() {
  const [header, blobs] = unpack(await get('job.bin'));
  const job = {...header, blobs};
  const device = await describeDevice();
  showDevice(device);
  showFiles(job);
  const count = job.files.length === 1 ? 'One file runs' : `${job.files.length} files run`;
  $('lead').textContent = `${count} in this browser by ${job.runtime}, on one thread. Outputs are held against ${job.golden}.`;
  $('measure').disabled = false;

  let running = false;
  $('controls').addEventListener('submit', async (event) => {
    event.preventDefault();
    if (running) return;
    const rounds = Number($('rounds').value);
    let hidden = document.hidden;
    const watch = () => void (hidden ||= document.hidden);
    document.addEventListener('visibilitychange', watch);
    // Not `disabled`, which would take the keyboard's focus from the button.
    running = true;
    $('measure').setAttribute('aria-disabled', 'true');
    $('running').hidden = false;
    $('progress').value = 0;
    $('copied').textContent = '';
    try {
      const rows = await measure(job, rounds);
      showFiles(job, rows);
      $('json').value = plain(JSON.stringify(resultOf(job, device, rows, rounds, hidden), null, 2));
      $('result').hidden = false;
      const wrong = rows.filter((row) => !row.agrees).length;
      say(
        (wrong ? `Done; ${wrong} of ${rows.length} files answered wrongly or not at all.` : 'Done; all outputs agree.') +
          (hidden ? ' The page was hidden meanwhile, which slows it down: measure again.' : ''),
      );
    } catch (error) {
      say(`Not measured: ${error?.message ?? error}`);
    } finally {
      document.removeEventListener('visibilitychange', watch);
      $('running').hidden = true;
      running = false;
      $('measure').removeAttribute('aria-disabled');
    }
  });

  $('copy').addEventListener('click', async () => {
    $('copied').textContent = (await copy($('json').value)) ? 'Copied.' : 'Select the text below and copy it.';
  });
}

start().catch((error) => say(`The list of files did not load: ${error?.message ?? error}`));
