// Loaded before everything else: the clock on the wall is wrong by SHIFT_MS, in this process.
const real = Date.now
const shift = Number(process.env.SHIFT_MS)
Date.now = () => real() + shift
globalThis.Date = class extends Date {
  constructor(...words) {
    if (words.length === 0) super(real() + shift)
    else super(...words)
  }
}
globalThis.Date.now = () => real() + shift
