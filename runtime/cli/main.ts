#!/usr/bin/env node
/**
 * The command line: which words mean what. Each command's code is loaded when it is called.
 *
 * Owns: commander, the end of the process.
 * Does not own: what a command does (one file for each group), exit codes and errors (`output.ts`).
 */
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { Command, CommanderError, InvalidArgumentError } from 'commander'
import { natsOptions } from './nats.js'

const usage = 2

const program = new Command('troupe')
  .description('Runs crews of agents, and looks after them.')
  .option('-V, --version', 'print the version')
  .on('option:version', () => {
    const path = createRequire(import.meta.url).resolve('troupe/package.json')
    process.stdout.write(`${(JSON.parse(readFileSync(path, 'utf8')) as { version: string }).version}\n`)
    process.exit(0)
  })
  .showHelpAfterError('(troupe --help lists the commands)')
  .exitOverride()

/** A command on a store. */
function localCommand(words: string, description: string): Command {
  return program
    .command(words)
    .description(description)
    .option('--store <dir>', 'folder of the store', '.troupe')
    .option('--json', 'print one JSON object a line')
}

/** A command on the workers of a namespace. */
function natsCommand(words: string, description: string): Command {
  return natsOptions(program.command(words).description(description)).option('--json', 'print one JSON object a line')
}

/** A command on a store, or on what workers share. */
function storeCommand(words: string, description: string): Command {
  return natsOptions(localCommand(words, description))
}

/** Does a command's work, then ends the process: what a crew file left open does not hold it. */
async function end(work: () => Promise<number>, json: boolean | undefined): Promise<void> {
  // The runtime's own timers hold no process.
  setInterval(() => undefined, 2 ** 30)
  let code: number
  try {
    code = await work()
  } catch (error) {
    const { reportError } = await import('./output.js')
    code = reportError(error, json === true)
  }
  await Promise.all([process.stdout, process.stderr].map((stream) => new Promise((done) => stream.write('', done))))
  process.exit(code)
}

function wholeFrom(least: number): (text: string) => number {
  return (text) => {
    const value = Number(text)
    if (text.trim() !== '' && Number.isSafeInteger(value) && value >= least) return value
    throw new InvalidArgumentError(`a whole number from ${least}`)
  }
}
const whole = wholeFrom(1)
const limit = wholeFrom(0)

function dollars(text: string): number {
  const value = Number(text)
  if (text.trim() === '' || !(value >= 0 && value <= 1_000_000))
    throw new InvalidArgumentError('dollars, from 0 to 1,000,000')
  return value
}

type Options = import('./show.js').StoreOptions

storeCommand('run <file>', 'give a task to the crew or agent that FILE exports by default')
  .option('--input <text>', 'the task; else stdin, else the `input` export of FILE')
  .option('--id <crew>', 'id of the crew in the store (default: its name)')
  .option('--new', 'start another run, though one of the same task is there')
  .option('--accept-upgrade', 'go on although changed code decides otherwise')
  .option('--wait', 'wait for a person, too, without a terminal (default: leave with exit code 3)')
  .action((file: string, options: import('./run.js').RunOptions) =>
    end(async () => (await import('./run.js')).run(file, options), options.json),
  )

storeCommand('ps', 'list the crews of a store, or workers and their crews').action((options: Options) =>
  end(async () => (await import('./ps.js')).ps(options), options.json),
)

storeCommand('show <id>', 'show a crew: its runs, its actors, what they wait for').action(
  (id: string, options: Options) => end(async () => (await import('./show.js')).show(id, options), options.json),
)

storeCommand('journal <id>', 'print the commits of a crew')
  .option('--from <sequence>', 'first commit', whole, 1)
  .action((id: string, options: Options & { from: number }) =>
    end(async () => (await import('./journal.js')).journal(id, options), options.json),
  )

storeCommand('rm <id>', 'delete a crew and everything it stored').action((id: string, options: Options) =>
  end(async () => (await import('./show.js')).rm(id, options), options.json),
)

storeCommand('pause <id>', 'hold the agents of a crew before their next model call').action(
  (id: string, options: Options) =>
    end(async () => (await import('./show.js')).command('pause', id, options), options.json),
)

storeCommand('resume <id>', 'let the agents of a paused crew go on').action((id: string, options: Options) =>
  end(async () => (await import('./show.js')).command('resume', id, options), options.json),
)

storeCommand('cancel <id>', 'end the current run of a crew')
  .option('--run <run>', 'end this run')
  .action((id: string, options: Options & { run?: string }) =>
    end(async () => (await import('./show.js')).command('cancel', id, options), options.json),
  )

storeCommand('approve <id> [ask]', 'let a call be made that waits for approval, or answer a question')
  .option('--deny [reason]', 'the call is not made, and the model is told why')
  .option('--answer <text>', 'answer a question')
  .option('--arguments <json>', 'make the call with these arguments instead of the model’s')
  .option('--by <name>', 'who says so (default: your user name; over NATS the name of the client)')
  .addHelpText('after', '\n`troupe show ID` lists what a crew waits for. Without ASK: the only one.')
  .action((id: string, ask: string | undefined, options: import('./approve.js').ApproveFlags) =>
    end(async () => (await import('./approve.js')).approve(id, ask, options), options.json),
  )

storeCommand('steer <id> <text>', 'say something to the agents of a crew that is at work')
  .option('--run <run>', 'only while this run goes on')
  .option('--agent <name>', 'to every task of this agent that goes on, or to this actor (default: the lead)')
  .action((id: string, text: string, options: Options & { run?: string; agent?: string }) =>
    end(async () => (await import('./show.js')).steer(id, text, options), options.json),
  )

storeCommand('raise <id>', 'set limits of a budget that is at work')
  .option('--usd <dollars>', 'US dollars', dollars)
  .option('--tokens <count>', 'input and output tokens', limit)
  .option('--model-calls <count>', 'model calls', limit)
  .option('--tool-calls <count>', 'tool calls', limit)
  .option('--agent <name>', 'the budget of this agent (default: the run’s, or the crew’s)')
  .addHelpText('after', '\nEach is what the limit is to be from now on; those that are not named stay.')
  .action((id: string, options: Options & import('../budget.js').BudgetLimits & { agent?: string }) =>
    end(async () => (await import('./show.js')).raise(id, options), options.json),
  )

storeCommand('dead-letters [words...]', 'list messages that nobody could process; show, replay or drop one')
  .option('--all', 'drop every one of the crew')
  .option('--edit <json>', 'replay it with this message instead of its own; or a file with it')
  .option('--by <name>', 'who edits it (default: your user name; over NATS the name of the client)')
  .addHelpText('after', '\n[ID] lists; show ID LETTER, replay ID LETTER [--edit JSON], drop ID LETTER, drop ID --all')
  .action((words: string[], options: Options & { all?: boolean; edit?: string; by?: string }) =>
    end(async () => (await import('./dead-letters.js')).deadLetters(words, options), options.json),
  )

storeCommand('move <id>', 'give a crew to another worker')
  .option('--to <worker>', 'the worker that is to have it while it lives (default, and `auto`: the one it falls to)')
  .action((id: string, options: Options & { to?: string }) =>
    end(async () => (await import('./show.js')).move(id, options), options.json),
  )

storeCommand('drain [worker]', 'have a worker, or the process that owns a store, hand over what it has and go')
  .option('--grace <ms>', 'how long it waits for what is running', whole, 30_000)
  .action((name: string | undefined, options: Options & { grace: number }) =>
    end(async () => (await import('./drain.js')).drain(name, options), options.json),
  )

storeCommand('repair <id>', 'tell what a damaged crew lost')
  .option('--accept-loss', 'go on from its last sound record')
  .action((id: string, options: Options & { acceptLoss?: boolean }) =>
    end(async () => (await import('./journal.js')).repair(id, options), options.json),
  )

natsCommand('worker <files...>', 'run crews of these files for whoever asks over NATS')
  .option('--name <name>', 'name of this worker (default: made of host and process)')
  .option('--trace', 'let every message between actors pass by, for `events --messages`')
  .option('--store <dir>', 'folder for a local copy, so that a restart reads little from NATS (default: none)')
  .option('--lease <ms>', 'a worker that is silent for so long loses its crews', whole, 5_000)
  .option('--replicas <count>', 'copies in a cluster of NATS servers', whole, 1)
  .option('--keep-events <days>', 'how long the event stream, when this makes it, keeps events', whole, 7)
  .option('--retain <days>', 'remove crews whose last run ended so long ago (default: keep them)', whole)
  .option('--tools-only', 'run no crews, only the tools of them that are `remote`')
  .option('--grace <ms>', 'how long a stop waits for what is running', whole, 30_000)
  .action((files: string[], options: import('./worker.js').WorkerCommandOptions) =>
    end(async () => (await import('./worker.js')).worker(files, options), options.json),
  )

natsCommand('events [subject]', 'follow the event stream of workers over NATS')
  .option('--since <place>', 'begin behind this number of the stream, at this time, or with `all` (default: now)')
  .option('--live', 'tokens and progress of tools, too')
  .option('--messages', 'messages between actors, too, of workers that trace')
  .addHelpText('after', "\nSUBJECT is the id of a crew, or a filter of subjects: '*.agent.>'")
  .action((subject: string | undefined, options: import('./events.js').EventsOptions) =>
    end(async () => (await import('./events.js')).events(subject, options), options.json),
  )

program
  .command('nats-config')
  .description('print a configuration of nats-server: one user for each role, with the least it needs')
  .option('--namespace <name>', 'the crews that the users are for', 'default')
  .option('--client <name...>', 'names of clients', ['client'])
  .option('--tools <name...>', 'names of tool workers', ['tools'])
  .option('--out <dir>', 'keys instead of passwords: their seeds are files there, which only you read')
  .option('--listen <address>', 'where the server listens', '127.0.0.1:4222')
  .option('--store-dir <dir>', "folder of JetStream's files", 'nats-data')
  .option('--tls-cert <file>', 'certificate of the server')
  .option('--tls-key <file>', 'key of this certificate')
  .option('--tls-ca <file>', 'authority that clients must have a certificate from')
  .action((options: import('./nats-config.js').NatsConfigOptions) =>
    end(async () => (await import('./nats-config.js')).printNatsConfig(options), false),
  )

// A reader that leaves is no error, and no reason to leave the store unclosed: the command ends by itself.
process.stdout.on('error', (error: NodeJS.ErrnoException) => {
  if (error.code !== 'EPIPE') throw error
})

try {
  await program.parseAsync()
} catch (error) {
  if (!(error instanceof CommanderError)) throw error
  process.exit(error.exitCode === 0 ? 0 : usage)
}
