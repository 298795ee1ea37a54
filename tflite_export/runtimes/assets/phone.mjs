/** The page that measures for a search: it asks the computer for work until the search is over. */

import {quantile, unpack} from './engine.mjs';
import {describeDevice, element, measure, pause, plain, showDevice} from './measuring.mjs';

const AGAIN = 2000;
const SHOWN = 12;
const $ = (id) => document.getElementById(id);
const say = (text) => void ($('status').textContent = plain(text));

/** What the computer knows this page by, as long as it is open. */
const page = Array.from(crypto.getRandomValues(new Uint8Array(8)), (byte) => byte.toString(16).padStart(2, '0')).join('');

/** The computer does not answer, which says nothing about the files. */
class Unreachable extends Error {}

/** Sends what the page says; returns the answer's bytes, none where there is nothing yet. */
async function post(path, words) {
  try {
    const response = await fetch(path, {method: 'POST', body: JSON.stringify({page, ...words})});
    if (response.ok) return new Uint8Array(await response.arrayBuffer());
    throw new Error(`it answered ${response.status}`);
  } catch (error) {
    throw new Unreachable(String(error?.message ?? error));
  }
}

/** Keeps the screen on, where the browser allows a page to. */
async function keepAwake() {
  try {
    await navigator.wakeLock?.request('screen');
  } catch {
    // Refused, as it may be with a low battery: the text asks the user to keep it on.
  }
}

let measured = 0;

/** Returns what came of a file: its time and how many times as fast it is as the first, or why it was not timed. */
function outcome(row, times) {
  if (row.error !== undefined) return `It does not run here: ${row.error}`;
  if (row.column === undefined) return row.agrees ? 'Not timed: another file failed.' : 'Not timed: its outputs differ from the computer’s.';
  const own = quantile(times.map((round) => round[row.column]), 0.5);
  const ratio = quantile(times.map((round) => round[0] / round[row.column]), 0.5);
  return `${own.toFixed(own < 10 ? 2 : 1)} ms` + (row.column ? `, ${ratio.toFixed(2)} x as fast as the first` : '');
}

/** Shows what was measured, the last job on top. */
function show(job, {rows, times}) {
  measured += rows.length;
  $('count').textContent = measured === 1 ? 'One file.' : `${measured} files.`;
  const cards = rows.map((row, i) =>
    element(
      'li',
      {class: 'file panel'},
      element('p', {class: 'name'}, job.files[i].name),
      element('p', {class: row.column === undefined ? 'bad' : 'size'}, outcome(row, times)),
    ),
  );
  $('files').prepend(...cards);
  while ($('files').children.length > SHOWN) $('files').lastChild.remove();
}

/** Does something that the network may keep from succeeding, up to five times. */
async function stubbornly(act, tries = 5) {
  try {
    return await act();
  } catch (error) {
    if (tries <= 1) throw error;
    await pause(AGAIN);
    return stubbornly(act, tries - 1);
  }
}

/** Returns a row as the computer takes it. */
const plainRow = ({agrees = false, max_difference: difference, said = [], error, column}) => ({
  agrees,
  max_difference: Number.isFinite(difference) ? difference : null, // JSON has no infinity
  said: [error, ...said].filter(Boolean).slice(0, 5).map((text) => text.slice(0, 300)),
  failed: error !== undefined,
  timed: column !== undefined,
});

/** Does a job and sends its figures. */
async function work(job) {
  let hidden = document.hidden;
  const watch = () => void (hidden ||= document.hidden);
  document.addEventListener('visibilitychange', watch);
  $('running').hidden = false;
  $('progress').value = 0;
  let told = performance.now();
  const step = async (place) => {
    told = performance.now();
    await post('step', {job: job.job, place});
  };
  let result, found;
  try {
    found = await measure(job, job.rounds, {
      say,
      stopAtError: true,
      onFile: step,
      onRound: (done) => {
        $('progress').value = done / job.rounds;
        if (performance.now() - told > AGAIN) step(null).catch(() => {}); // the result tells whether it is reachable
      },
    });
    result = {rows: found.rows.map(plainRow), times: found.times, hidden};
  } catch (error) {
    if (error instanceof Unreachable) throw error;
    result = {broken: String(error?.message ?? error).slice(0, 300)};
  } finally {
    document.removeEventListener('visibilitychange', watch);
    $('running').hidden = true;
  }
  const [answer] = unpack(await stubbornly(() => post('result', {job: job.job, ...result})));
  if (found) show(job, found);
  if (answer.refused) say(`The computer refused the result: ${answer.refused}.`);
  // A file that failed may have broken the runtime: the next job gets a fresh one.
  if (result.broken !== undefined || result.rows.some((row) => row.failed)) location.reload();
}

async function start() {
  const device = await describeDevice();
  showDevice(device);
  await keepAwake();
  document.addEventListener('visibilitychange', () => document.hidden || keepAwake());
  const pulse = new Worker('pulse.js');
  pulse.postMessage({page});
  addEventListener('pagehide', () => navigator.sendBeacon('bye', JSON.stringify({page})));
  for (;;) {
    // An answer that comes at once, with work or with a reason, replaces no text.
    const waiting = setTimeout(() => say('Waiting for the next candidate …'), 500);
    try {
      const bytes = await post('work', {browser: device.user_agent});
      clearTimeout(waiting);
      if (bytes.byteLength === 0) continue;
      const [header, blobs] = unpack(bytes);
      if (header.do === 'end') {
        say('The search is over. You can close this page.');
        pulse.terminate();
        return;
      }
      if (header.do === 'measure') {
        await work({...header, blobs});
      } else {
        say(header.why);
        await pause(AGAIN);
      }
    } catch (error) {
      clearTimeout(waiting);
      say(`The computer cannot be reached: ${error?.message ?? error}. Asking again …`);
      await pause(AGAIN);
    }
  }
}

start().catch((error) => say(`This page cannot measure: ${error?.message ?? error}`));
