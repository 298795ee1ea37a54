/** The page that measures files in the browser that opened it. */

import {quantile, unpack} from './engine.mjs';
import {WARM_UP, describeDevice, element, get, measure, plain, showDevice} from './measuring.mjs';

const $ = (id) => document.getElementById(id);

const say = (text) => void ($('status').textContent = plain(text));
const digits = (value) => (value < 10 ? value.toFixed(2) : value.toFixed(1));
const milliseconds = (value) => `${digits(value)} ms`;
const megabytes = (bytes) => (bytes < 1e6 ? `${(bytes / 1e3).toFixed(1)} kB` : `${(bytes / 1e6).toFixed(2)} MB`);

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

/** Puts the medians, quartiles and ratios of the times into the rows. */
function summarise({rows, times}) {
  for (const row of rows.filter((each) => each.column !== undefined)) {
    const own = times.map((round) => round[row.column]);
    row.median_ms = quantile(own, 0.5);
    row.low_ms = quantile(own, 0.25);
    row.high_ms = quantile(own, 0.75);
    row.ratio = rows[0].agrees ? quantile(times.map((round) => round[0] / round[row.column]), 0.5) : null;
    delete row.column;
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
  $('lead').textContent = `${count} in this browser with ${job.runtime}, on one thread. Their outputs are compared with those of ${job.golden}.`;
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
      const rows = summarise(
        await measure(job, rounds, {
          say,
          onRound: (done) => void ($('progress').value = done / rounds),
        }),
      );
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
