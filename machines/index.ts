import type { AnyStateMachine } from 'xstate'
import { agentMachine } from './agent.js'
import { budgetMachine } from './budget-keeper.js'
import { poolMachine } from './budget-pool.js'
import { crewMachine } from './crew.js'
import { envoyMachine } from './envoy.js'
import { escalationMachine } from './escalation.js'
import { flowMachine } from './flow.js'
import { loopMachine } from './loop-detector.js'
import { routerMachine } from './model-router.js'
import { toolMachine } from './tool-executor.js'

export { type AgentEvent, agentMachine } from './agent.js'
export { budgetMachine } from './budget-keeper.js'
export { bookedOf as poolBooked, type PoolEvent, poolMachine } from './budget-pool.js'
export { returnOf, type Share, type SharedGrant } from './budget-share.js'
export { type BreakerEvent, breakerMachine } from './circuit-breaker.js'
export { type CrewEvent, crewMachine } from './crew.js'
export { envoyMachine } from './envoy.js'
export { type EscalationEvent, escalationMachine } from './escalation.js'
export { type FlowEvent, flowMachine } from './flow.js'
export { type LoopEvent, loopMachine } from './loop-detector.js'
export * from './messages.js'
export { type RouterEvent, routerMachine } from './model-router.js'
export { type ToolEvent, toolMachine } from './tool-executor.js'

/** The shipped machines by actor kind. */
export const machines: Readonly<
  Record<
    'agent' | 'tool' | 'budget' | 'crew' | 'envoy' | 'escalation' | 'flow' | 'loop' | 'pool' | 'router',
    AnyStateMachine
  >
> = {
  agent: agentMachine,
  tool: toolMachine,
  budget: budgetMachine,
  crew: crewMachine,
  envoy: envoyMachine,
  escalation: escalationMachine,
  flow: flowMachine,
  loop: loopMachine,
  pool: poolMachine,
  router: routerMachine,
}
