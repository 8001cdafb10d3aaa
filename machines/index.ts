/** The shipped machines by actor kind. */
export { type AgentEvent, agentMachine } from './agent.js'
export { budgetMachine } from './budget-keeper.js'
export { type CrewEvent, crewMachine } from './crew.js'
export { envoyMachine } from './envoy.js'
export * from './messages.js'
export { type ToolEvent, toolMachine } from './tool-executor.js'
