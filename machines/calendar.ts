/**
 * Hours, days and months of UTC, from a count of milliseconds.
 *
 * Owns: their ends, their names.
 * Does not own: what time it is: machines are told.
 */
const hourMs = 3_600_000
const dayMs = 24 * hourMs

/** The date of a day, counted from 1970-01-01, by the Gregorian calendar. Years begin in March for the arithmetic. */
function dateOf(days: number): { readonly year: number; readonly month: number; readonly day: number } {
  const shifted = days + 719_468
  const era = Math.floor(shifted / 146_097)
  const inEra = shifted - era * 146_097
  const years = Math.floor(
    (inEra - Math.floor(inEra / 1_460) + Math.floor(inEra / 36_524) - Math.floor(inEra / 146_096)) / 365,
  )
  const inYear = inEra - (365 * years + Math.floor(years / 4) - Math.floor(years / 100))
  const fromMarch = Math.floor((5 * inYear + 2) / 153)
  const day = inYear - Math.floor((153 * fromMarch + 2) / 5) + 1
  const month = fromMarch < 10 ? fromMarch + 3 : fromMarch - 9
  return { year: years + era * 400 + (month <= 2 ? 1 : 0), month, day }
}

/** The end of the hour, day or month that a moment lies in. */
export function endOf(window: 'hour' | 'day' | 'month', at: number): number {
  if (window !== 'month') {
    const ms = window === 'hour' ? hourMs : dayMs
    return (Math.floor(at / ms) + 1) * ms
  }
  const today = Math.floor(at / dayMs)
  // The first day of the next month is at most 31 days away.
  let next = today + 1
  while (dateOf(next).day !== 1) next += 1
  return next * dayMs
}

/** A full hour as text: `2026-03-01 14:00 UTC`. */
export function hourText(at: number): string {
  const { year, month, day } = dateOf(Math.floor(at / dayMs))
  const hour = Math.floor((at % dayMs) / hourMs)
  const two = (value: number): string => `${value}`.padStart(2, '0')
  return `${year}-${two(month)}-${two(day)} ${two(hour)}:00 UTC`
}
