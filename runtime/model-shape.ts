/**
 * Which model an agent uses, and how: the check of what users write.
 *
 * Owns: the shapes of `model` and `settings`.
 * Does not own: whether a model works (`ports.ts`), what settings mean (`actors/model-openai.ts`).
 */
import { z } from 'zod'

/** `settings` of an agent or a round. */
export const settingsShape = z.strictObject({
  temperature: z.number().optional(),
  topP: z.number().optional(),
  maxOutputTokens: z.int().min(1).optional(),
  toolChoice: z.enum(['auto', 'required', 'none']).optional(),
  parallelToolCalls: z.boolean().optional(),
  reasoningEffort: z.enum(['minimal', 'low', 'medium', 'high']).optional(),
  seed: z.int().optional(),
  stop: z.array(z.string()).optional(),
  extra: z.record(z.string(), z.unknown()).optional(),
})

const modelName = z.string().regex(/^[A-Za-z0-9_-]{1,64}:[^\s:][^\s]{0,255}$/, '"<provider>:<model>"')

/** `model` of an agent or a round: a name, or a list in order of preference, with groups of equals in it. */
export const modelShape = z.union([
  modelName,
  z
    .array(z.union([modelName, z.array(modelName).min(1).max(16)]))
    .min(1)
    .max(16),
])
