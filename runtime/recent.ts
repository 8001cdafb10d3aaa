/**
 * What was said last: a map that forgets.
 *
 * Owns: forgetting, at the same cost however much there is.
 *
 * - RC1 The last `atLeast` keys that were set are there, and at most twice as many.
 */

/** A map of the keys that were set last. Deleting the oldest of a large `Map` one by one is some twenty times slower. */
export class Recent<Value> {
  readonly #atLeast: number
  #young = new Map<string, Value>()
  #old = new Map<string, Value>()

  constructor(atLeast: number) {
    this.#atLeast = atLeast
  }

  has(key: string): boolean {
    return this.#young.has(key) || this.#old.has(key)
  }

  get(key: string): Value | undefined {
    return this.#young.get(key) ?? this.#old.get(key)
  }

  set(key: string, value: Value): void {
    if (this.#young.size >= this.#atLeast && !this.#young.has(key)) {
      this.#old = this.#young
      this.#young = new Map()
    }
    this.#young.set(key, value)
  }

  delete(key: string): void {
    this.#young.delete(key)
    this.#old.delete(key)
  }
}
