// graphile-worker from npm, measured as the Rust programs beside it do: `ADDRESS MEASURE JOBS`, one line printed. Its order
// per key is that of a named queue, which runs one job at a time.

import { setTimeout as sleep } from "node:timers/promises";

import { Logger, makeWorkerUtils, run, runMigrations } from "graphile-worker";

const KEYS = 10_000;
// Jobs per statement while the backlog is made.
const STEP = 5_000;
const INTERVAL = 10;
// Not counted: connections are made and plans prepared.
const WARM_UP = 100;
const PICK_UP_JOBS = WARM_UP + 1_000;
const LIMIT = 600_000;
const ACKNOWLEDGED_LIMIT = 60_000;
// Between two looks at the database for what is not acknowledged yet, once every job has started.
const POLL = 2;

const logger = new Logger(() => () => {});

/** The record of which job started when. */
class Starts {
  constructor(jobs) {
    this.times = new Array(jobs);
    this.count = 0;
    this.all = new Promise((resolve, reject) => {
      this.resolve = resolve;
      this.reject = reject;
    });
    this.limit = setTimeout(() => this.reject(new Error(`${this.count} of ${jobs} jobs started in time`)), LIMIT);
  }

  note(number) {
    if (this.times[number] !== undefined) {
      this.reject(new Error(`job ${number} started more than once`));
    }
    this.times[number] = performance.now();
    this.count += 1;
    if (this.count === this.times.length) {
      clearTimeout(this.limit);
      this.resolve();
    }
  }
}

function start(starts, worker) {
  const taskList = { empty: ({ number }) => starts.note(number) };
  return run({ preset: { worker: { ...worker, logger } }, taskList, parsedCronItems: [] });
}

async function fill(utils, jobs, inOrder) {
  for (let from = 0; from < jobs; from += STEP) {
    const step = [];
    for (let number = from; number < Math.min(jobs, from + STEP); number += 1) {
      const queue = inOrder ? { queueName: `key-${number % KEYS}` } : {};
      step.push({ identifier: "empty", payload: { number }, ...queue });
    }
    await utils.addJobs(step);
  }
  await utils.withPgClient((client) => client.query("ANALYZE"));
}

// Jobs are fetched and acknowledged in batches, as its manual advises for many small ones.
async function drain(connectionString, jobs, inOrder) {
  const utils = await makeWorkerUtils({ connectionString, logger });
  await fill(utils, jobs, inOrder);
  const starts = new Starts(jobs);
  const began = performance.now();
  const runner = await start(starts, {
    connectionString,
    concurrentJobs: 24,
    maxPoolSize: 26,
    localQueue: { size: 500 },
    completeJobBatchDelay: 0,
  });
  await starts.all;
  const started = performance.now();
  const left = "SELECT EXISTS (SELECT FROM graphile_worker._private_jobs) AS left";
  while ((await utils.withPgClient((client) => client.query(left))).rows[0].left) {
    if (performance.now() - started > ACKNOWLEDGED_LIMIT) {
      throw new Error("jobs have run that are not acknowledged");
    }
    await sleep(POLL);
  }
  console.log(`drained ${Math.round((jobs * 1000) / (performance.now() - began))}`);
  if (inOrder && starts.times.some((time, number) => number >= KEYS && starts.times[number - KEYS] > time)) {
    throw new Error("a job started before the one before it of its key");
  }
  await runner.stop();
  await utils.release();
}

// With what it does by default: each job is fetched and acknowledged by itself, upon a notification.
async function pickUp(connectionString) {
  const starts = new Starts(PICK_UP_JOBS);
  const runner = await start(starts, { connectionString, concurrentJobs: 10, maxPoolSize: 12 });
  const utils = await makeWorkerUtils({ connectionString, logger });
  const committed = [];
  let next = performance.now();
  for (let number = 0; number < PICK_UP_JOBS; number += 1) {
    await sleep(Math.max(0, next - performance.now()));
    next = performance.now() + INTERVAL;
    await utils.addJob("empty", { number });
    committed.push(performance.now());
  }
  await starts.all;
  const waits = committed
    .map((time, number) => Math.max(0, starts.times[number] - time))
    .slice(WARM_UP)
    .sort((one, other) => one - other);
  const at = (part) => waits[Math.floor((waits.length - 1) * part)].toFixed(3);
  console.log(`picked-up ${at(0.5)} ${at(0.99)}`);
  await runner.stop();
  await utils.release();
}

const [address, measure, jobs] = process.argv.slice(2);
await runMigrations({ preset: { worker: { connectionString: address, logger } } });
switch (measure) {
  case "drain":
    await drain(address, Number(jobs), false);
    break;
  case "drain-in-order":
    await drain(address, Number(jobs), true);
    break;
  case "pick-up":
    await pickUp(address);
    break;
  default:
    throw new Error(`there is no measure ${measure}`);
}
