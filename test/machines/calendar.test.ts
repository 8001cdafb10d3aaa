import fc from 'fast-check'
import { expect, test } from 'vitest'
import { endOf, hourText } from '../../machines/calendar.js'

const moments = fc.integer({ min: 0, max: Date.UTC(2500, 0) })

test('calendar: hours, days and months end where the calendar says, leap years and centuries too', () => {
  fc.assert(
    fc.property(moments, (at) => {
      const now = new Date(at)
      const [year, month, day] = [now.getUTCFullYear(), now.getUTCMonth(), now.getUTCDate()]
      expect(endOf('hour', at)).toBe(Date.UTC(year, month, day, now.getUTCHours() + 1))
      expect(endOf('day', at)).toBe(Date.UTC(year, month, day + 1))
      expect(endOf('month', at)).toBe(Date.UTC(year, month + 1))
    }),
    { numRuns: 2_000, examples: [[Date.UTC(2100, 1, 28, 23)], [Date.UTC(2000, 1, 28)], [0]] },
  )
})

test('calendar: an hour is named as the calendar does', () => {
  fc.assert(
    fc.property(moments, (at) => {
      const hour = Math.floor(at / 3_600_000) * 3_600_000
      expect(hourText(hour)).toBe(`${new Date(hour).toISOString().slice(0, 16).replace('T', ' ')} UTC`)
    }),
  )
})
