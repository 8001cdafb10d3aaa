/** The judge of mail is strict: it excuses a failure only where work is known to have been given up. */
import { expect, test } from 'vitest'
import { askOf, judgeAnswer, lanesOf, mailGroups } from './mail-crews.js'
import { judgeLeads } from './mail-judge.js'

const [group] = mailGroups({ pair: 1, ring: 0, crowd: 0 })
const [lane] = lanesOf(group!)
const ask = Array.from({ length: 20 }, (_, n) => askOf(group!, lane!, n)).find(
  (each) => judgeAnswer(each, 'one line', new Set())[0]?.includes('ended with') === true,
)!
const crashed = 'the process died three times over one model call'
const helper = `pair0b/agent/helper failed: EFFECT_CRASHED: ${crashed}`
const lead = { id: ask.name, code: 'EFFECT_CRASHED', reason: crashed, output: '', messages: [], modelCalls: 0 }
const story = new Map([[ask.crew, { commits: [], events: [] }]])

test('mail: a delegation that was given up is excused where its crew is known to have been, and nowhere else', () => {
  expect(judgeAnswer(ask, helper, new Set(['pair0b']))).toEqual([])
  expect(judgeAnswer(ask, helper, new Set(['pair0a']))).toHaveLength(1)
  expect(judgeAnswer(ask, helper, new Set())).toHaveLength(1)
})

test('mail: a lead that was given up is excused where its crew is known to have been, and nowhere else', () => {
  const ends = (givenUp: readonly string[]): string[] =>
    judgeLeads([ask], [lead], story, new Set(givenUp)).filter((violation) => violation.includes('ended with'))
  expect(ends([ask.crew])).toEqual([])
  expect(ends(['pair0b'])).toHaveLength(1)
  expect(ends([])).toHaveLength(1)
})
