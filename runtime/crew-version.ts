/**
 * Which code a shard runs: the name of its crew, and the version of that crew's definition.
 *
 * Owns: both as one text, and the way back to the name.
 * Does not own: definitions (`define.ts`), where it is kept (the journals), who has which (`ownership.ts`).
 *
 * - CV1 Equal definitions have equal versions, and the name of a crew comes back from its version.
 */

/**
 * A crew and its version, `name@version`; the name alone where the version is not known; empty where there is no crew yet.
 */
export type CrewVersion = string

/** A crew of this version. @param version hash of its definition; empty: not known */
export function crewVersion(name: string, version = ''): CrewVersion {
  return version === '' ? name : `${name}@${version}`
}

/** Name of a crew, whatever its version; names have no `@`. */
export function nameIn(crew: CrewVersion): string {
  const at = crew.indexOf('@')
  return at < 0 ? crew : crew.slice(0, at)
}
