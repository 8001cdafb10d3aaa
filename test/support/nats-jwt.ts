/**
 * An operator, its account and a user of it as NATS has them in JWT mode: the tokens are made by hand, signed with nkeys.
 */
import { createHash } from 'node:crypto'
import { nkeys } from '@nats-io/transport-node'

type KeyPair = ReturnType<typeof nkeys.createUser>

/** What a server and a user need. */
export interface JwtSetup {
  /** Part of a server's configuration. */
  readonly config: string
  /** Text of the user's creds file. */
  readonly creds: string
  /** The seed in it. */
  readonly seed: string
}

/** Makes them: the user `user` with these permissions. */
export function makeJwt(permissions: { readonly pub?: object; readonly sub?: object } = {}): JwtSetup {
  const [operator, account, user] = [nkeys.createOperator(), nkeys.createAccount(), nkeys.createUser()]
  // JetStream of a server in this mode does not start without an account of the system.
  const system = nkeys.createAccount()
  const unlimited = { subs: -1, data: -1, payload: -1 }
  const limits = { ...unlimited, imports: -1, exports: -1, wildcards: true, conn: -1, leaf: -1 }
  const storage = { mem_storage: -1, disk_storage: -1, streams: -1, consumer: -1 }
  const operatorJwt = sign(operator, operator, 'operator', { type: 'operator' })
  const accountJwt = sign(operator, account, 'account', { type: 'account', limits: { ...limits, ...storage } })
  const systemJwt = sign(operator, system, 'system', { type: 'account', limits })
  const userJwt = sign(account, user, 'user', { type: 'user', ...permissions, ...unlimited })
  const seed = new TextDecoder().decode(user.getSeed())
  const part = (name: string, text: string): string => `-----BEGIN ${name}-----\n${text}\n------END ${name}------\n\n`
  const accounts = `${account.getPublicKey()}: ${accountJwt}, ${system.getPublicKey()}: ${systemJwt}`
  const modes = `operator: ${operatorJwt}\nsystem_account: ${system.getPublicKey()}\nresolver: MEMORY\n`
  return {
    config: `${modes}resolver_preload: { ${accounts} }\n`,
    creds: part('NATS USER JWT', userJwt) + part('USER NKEY SEED', seed),
    seed,
  }
}

function sign(issuer: KeyPair, subject: KeyPair, name: string, nats: object): string {
  const claims = { iat: 1_700_000_000, iss: issuer.getPublicKey(), name, sub: subject.getPublicKey() }
  const whole = { ...claims, nats: { ...nats, version: 2 } }
  const jti = createHash('sha256').update(JSON.stringify(whole)).digest('hex')
  const head = { typ: 'JWT', alg: 'ed25519-nkey' }
  const text = [head, { jti, ...whole }]
    .map((each) => Buffer.from(JSON.stringify(each)).toString('base64url'))
    .join('.')
  return `${text}.${Buffer.from(issuer.sign(new TextEncoder().encode(text))).toString('base64url')}`
}
