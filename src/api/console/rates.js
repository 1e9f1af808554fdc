// Rates from totals: the server tells what has come together since its start, and how much came in the last seconds is what it
// has grown by since.

/** Seconds that a rate is taken over. */
const WINDOW = 5;

export class Rates {
  /** @type {{at: number, totals: Map<string, number>}[]} */
  #seen = [];

  /**
   * @param {number} at seconds on the server's own clock
   * @param {Map<string, number>} totals
   */
  note(at, totals) {
    const last = this.#seen.at(-1);
    if (last?.at === at) return;
    // A clock that goes back is another server's.
    if (last && at < last.at) this.#seen = [];
    this.#seen.push({ at, totals });
    // The first one that is kept is the last one that is old enough.
    while (this.#seen.length > 2 && at - this.#seen[1].at >= WINDOW) this.#seen.shift();
  }

  /**
   * So much a second; null while it is not known.
   * @param {string} name
   * @returns {number | null}
   */
  of(name) {
    const last = this.#seen.at(-1);
    const first = this.#seen.find((seen) => seen.totals.has(name));
    if (!last || !first || first === last) return null;
    const grown = (last.totals.get(name) ?? NaN) - (first.totals.get(name) ?? NaN);
    // What has become less has begun anew, as the counts of a model do that was loaded again.
    return grown >= 0 ? grown / (last.at - first.at) : null;
  }
}
