/**
 * A TCP proxy whose links can be cut, silenced or slowed down, each way on its own.
 */
import { createConnection, createServer, type AddressInfo, type Socket } from 'node:net'

/** What happens to bytes: they pass, are swallowed, or wait. */
export type Passage = 'pass' | 'swallow' | 'hold'

/** A proxy in front of one port. */
export interface LinkProxy {
  readonly port: number
  /** Links that stand. */
  readonly links: number
  /** From now on bytes of clients pass, vanish, or wait until they may pass again. */
  up: Passage
  /** The same for bytes of the server. */
  down: Passage
  /** Called with what clients send, before it passes. */
  onUp: (bytes: Buffer) => void
  /** Ends every link that stands. New ones may come. */
  cut(): void
  /**
   * Ends the clients' side of every link that stands. What they sent and still waits gets to the server when the returned
   * function is called: long after they have come back over a new link.
   */
  strand(): () => void
  /** Ends the server's side of every link that stands: clients are not told, and nothing comes any more. */
  halve(): void
  close(): Promise<void>
}

/** Starts a proxy in front of a port of this machine. */
export async function startLinkProxy(target: number): Promise<LinkProxy> {
  const sockets = new Set<Socket>()
  /** Sides of links whose other side was ended, and that are not told. */
  const stranded = new Set<Socket>()
  /** The server's side of links that stand, with the client's. */
  const pairs = new Map<Socket, Socket>()
  const held: { readonly way: 'up' | 'down'; readonly to: Socket; readonly bytes: Buffer }[] = []
  const passages: { up: Passage; down: Passage } = { up: 'pass', down: 'pass' }
  const set = (way: 'up' | 'down', passage: Passage): void => {
    passages[way] = passage
    if (passage !== 'pass') return
    for (const each of held.filter((one) => one.way === way)) each.to.write(each.bytes)
    held.splice(0, held.length, ...held.filter((one) => one.way !== way))
  }
  const server = createServer((client) => {
    const behind = createConnection(target, '127.0.0.1')
    const join = (from: Socket, to: Socket, way: 'up' | 'down'): void => {
      sockets.add(from)
      from.on('data', (bytes) => {
        if (way === 'up') proxy.onUp(bytes)
        if (passages[way] === 'pass') to.write(bytes)
        else if (passages[way] === 'hold') held.push({ way, to, bytes })
      })
      from.on('error', () => undefined)
      from.on('close', () => {
        sockets.delete(from)
        if (!stranded.has(to)) to.destroy()
      })
    }
    join(client, behind, 'up')
    join(behind, client, 'down')
    pairs.set(behind, client)
    behind.once('close', () => pairs.delete(behind))
  })
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve))
  const proxy: LinkProxy = {
    port: (server.address() as AddressInfo).port,
    get links() {
      return sockets.size / 2
    },
    get up() {
      return passages.up
    },
    set up(passage) {
      set('up', passage)
    },
    get down() {
      return passages.down
    },
    set down(passage) {
      set('down', passage)
    },
    onUp: () => undefined,
    cut: () => {
      for (const socket of sockets) socket.destroy()
    },
    strand: () => {
      const waiting = held.filter(({ way }) => way === 'up')
      held.length = 0
      for (const { to } of waiting) {
        stranded.add(to)
        sockets.delete(to)
      }
      for (const socket of sockets) socket.destroy()
      return () => {
        for (const { to, bytes } of waiting) to.write(bytes)
      }
    },
    halve: () => {
      for (const [behind, client] of pairs) {
        stranded.add(client)
        behind.destroy()
      }
    },
    close: () => {
      for (const socket of [...sockets, ...stranded]) socket.destroy()
      return new Promise((resolve) => server.close(() => resolve()))
    },
  }
  return proxy
}
