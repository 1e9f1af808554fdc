// What requests compete for: executors, tenants' turns, memory.

import { bar } from './bar.js';
import { keyed, setText } from './dom.js';
import { bytes, percent, rate, seconds } from './format.js';
import { Rates } from './rates.js';

/** @typedef {import('./api.js').Load} Load */

/** Tenants with a bar of their own. */
const MOST_TENANTS = 6;

/** Names of what `[pressure]` looks at. */
const RESOURCES = new Map([['memory', 'memory in use'], ['in_flight_bytes', 'bytes in flight'], ['cpu', 'CPU pressure']]);

/** By the number of lanes that are rejected. */
export const PRESSURE = ['none', 'LOW rejected', 'LOW, NORMAL rejected'];

/**
 * A bar of a list, for {@link keyed}.
 * @param {{label: string, part: number | null, text: string, tone?: '' | 'good' | 'warn' | 'bad' | 'strong'}} item
 */
function listed({ label }) {
  const made = bar(label);
  return {
    node: made.node,
    update(/** @type {Parameters<typeof listed>[0]} */ { label, part, text, tone }) {
      made.rename(label);
      made.show(part, text, tone);
    },
  };
}

/**
 * Shows what is in `load` in the three panels.
 * @param {{executors: Element, executorsNote: Element, tenants: Element, tenantsNote: Element, memory: Element, memoryNote: Element}} into
 */
export function resources(into) {
  const rates = new Rates();

  /**
   * @param {Load} load
   * @param {number} uptime in seconds
   */
  function note({ executors, tenants }, uptime) {
    const totals = new Map(executors.busy_seconds.map((busy, index) => [`executor ${index}`, busy]));
    totals.set('wire', executors.wire_seconds);
    totals.set('batches', executors.batches);
    for (const { tenant, compute_seconds } of tenants) totals.set(`tenant ${tenant}`, compute_seconds);
    rates.note(uptime, totals);
  }

  /** @param {Load['executors']} executors */
  function showExecutors(executors) {
    const all = executors.busy_seconds.length;
    const bars = executors.busy_seconds.map((_, index) => ({ key: `executor ${index}`, label: `executor ${index}` }));
    const shown = [...bars, { key: 'wire', label: 'on the wire' }].map(({ key, label }) => {
      const part = rates.of(key);
      return { key, label, part, text: percent(part) };
    });
    keyed(into.executors, shown, (item) => item.key, listed);
    const batches = `${rate(rates.of('batches'))} batches/s`;
    setText(into.executorsNote, executors.healthy < all ? `${executors.healthy} of ${all} healthy · ${batches}` : batches);
  }

  /** @param {Load['tenants']} tenants */
  function showTenants(tenants) {
    const busy = tenants.map(({ tenant, compute_seconds }) => ({
      key: tenant,
      total: compute_seconds,
      now: rates.of(`tenant ${tenant}`) ?? 0,
    }));
    const all = busy.reduce((sum, { now }) => sum + now, 0);
    const ranked = busy.toSorted((a, b) => b.total - a.total || a.key.localeCompare(b.key));
    const shown = ranked.slice(0, MOST_TENANTS).map(({ key, total, now }) => ({
      key,
      label: key,
      part: all > 0 ? now / all : 0,
      text: `${percent(all > 0 ? now / all : 0)} · ${seconds(total)}`,
    }));
    keyed(into.tenants, shown, (item) => item.key, listed);
    const more = ranked.length - shown.length;
    setText(into.tenantsNote, more > 0 ? `share now · compute in all · ${more} more` : 'share now · compute in all');
  }

  /** @param {Load} load */
  function showMemory({ memory, pressure }) {
    const { budget_bytes: budget, used_bytes: used } = memory;
    const part = budget > 0 ? used / budget : null;
    const ofBudget = {
      key: 'budget',
      label: budget > 0 ? 'models, of the budget' : 'models',
      part: part ?? 0,
      text: budget > 0 ? `${bytes(used)} of ${bytes(budget)}` : `${bytes(used)}, no budget`,
      tone: /** @type {'' | 'warn'} */ (memory.thrashing ? 'warn' : ''),
    };
    const nearest = Math.max(...pressure.ratios.map(({ ratio }) => ratio));
    const tones = /** @type {('' | 'warn' | 'bad')[]} */ (['', 'warn', 'bad']);
    const ratios = pressure.ratios.map(({ resource, ratio }) => ({
      key: resource,
      label: RESOURCES.get(resource) ?? resource,
      part: ratio,
      text: resource === 'in_flight_bytes' ? bytes(pressure.in_flight_bytes) : percent(ratio),
      tone: ratio === nearest ? tones[pressure.level] : '',
    }));
    keyed(into.memory, [ofBudget, ...ratios], (item) => item.key, listed);
    const models = memory.models === 1 ? '1 model in memory' : `${memory.models} models in memory`;
    setText(into.memoryNote, memory.thrashing ? `${models} · they only take each other's place` : models);
  }

  return {
    /**
     * @param {Load} load
     * @param {number} uptime in seconds
     */
    show(load, uptime) {
      note(load, uptime);
      showExecutors(load.executors);
      showTenants(load.tenants);
      showMemory(load);
    },
  };
}
