/**
 * Seeds that broke a promise before something was mended, with what it was. They run first, for ever.
 *
 * A seed means what it meant only as long as the simulation draws the same: that it passes proves little later on, that
 * it fails proves much. When the draws change, look for new ones by taking the mending out of a copy of the tree.
 */
export const regressions: readonly (readonly [seed: number, was: string])[] = [
  [200_004, 'a due timer that waited for a busy store made its shard look again without pause'],
  [200_006, 'a delegate that waited for its own delegate took the last place: the crew hung'],
  [200_002, 'delegations that waited when they were cancelled left their conversations behind'],
  [200_833, 'a shard that had been unloaded counted the time as time down: its wall budget never ran out'],
  [200_024, 'a run that was cancelled moved a kept conversation: the next run read other calls for its own'],
  [200_216, 'a kept conversation was written to by a run whose definition does not keep it'],
  [200_209, 'a redefinition without a limit left the old one in force'],
  [200_034, 'a redefinition of `per` in a run sent its messages to a keeper that is not there'],
  [200_213, 'an effect was given the conversation as commits had left it that were not durable yet'],
  [
    3_945_756_861_585,
    'the judge took a store that was full for a process that was dead: a run ended by its wall too early',
  ],
  [
    3_945_756_863_292,
    'the judge knew nothing of a process that lived and wrote nothing: a run ended by its wall too early',
  ],
  [3_945_756_863_858, 'the judge did not count the crash in which an append landed over what that append asked for'],
  [1_310_594_219, 'a keeper of an earlier run that failed ended the run that went on'],
  [1_310_521_791, 'the judge took what the provider counted for what it had told, where it told tokens and no money'],
  [415_751_934, 'a crew that failed left the conversations of its delegates behind'],
  [779_453_561, 'a keeper of the crew that failed was replaced by one that knew nothing of what was spent'],
  [415_821_611, 'a crew that failed left results staged for a round that nobody would end'],
  [492_518_211, 'a call that failed after it was cancelled counted as none: there was one more than the limit'],
  [800_977_452, 'what a start asked for when it gave a timer up it took for left behind, and interrupted'],
  [2_321_960_791_297, 'letters of an earlier owner went out behind those of the commits that settled it'],
  [2_321_960_792_141, 'the same: their numbers came out of order'],
  [880_028_478_421, 'the judge did not count what an agent heard in the commit in which it was cancelled'],
  [4_294_958_201_636, 'an escalation that ended in the commit of its start asked a person behind its end, for ever'],
  [
    2_481_893_753_764,
    'a bill below its estimate that came between two runs of a crew left the difference booked in a shared budget',
  ],
  [2_481_893_753_880, 'the judge took what an agent that was resumed asked for again for work that had been given up'],
  [2_481_893_753_288, 'the judge did not wait for what is said behind an answer that comes in the end of a worker'],
  [1_047_326_428_719, 'the judge took a tool that a redefinition had taken away for one that a round had lost'],
  [
    1_047_326_428_480,
    'the system message of an agent whose instructions had become text was shown to whom it handed over',
  ],
  [
    1_720_770_730_111,
    'who had handed over a kept conversation went on in one that had been dropped: its next owner began anew',
  ],
  [
    93_000_003_585,
    'who kept a conversation of an earlier run that it handed over went on in what its failed successor had begun',
  ],
]

/** The same for three workers over one journal. */
export const workerRegressions: readonly (readonly [seed: number, was: string])[] = [
  [1_008, 'a shard that was left while the store took nothing stopped for good'],
  [1_026, 'a worker that was overtaken said it would do what it never began'],
  [1_039, 'timers fired behind the commit in which a shard was left'],
  [1_368, 'a living executor that did not answer once was taken for dead: a once call became unknown'],
  [700_577, 'a shard that was overtaken while it was being taken was never looked after again'],
  [3_266_589_007_074, 'an owner that was dead and not known to be counted no crash'],
  [3_266_589_007_080, 'what an owner did last, after the next one had looked, waited for ever'],
  [779_356_458_462, 'what a stopped shard had in flight when its append failed was neither taken nor refused'],
  [1_711, 'a worker that closed took shards again with its next lease'],
  [1_350_448_503_057, 'what an executor meant to begin when it was asked, and left then, was waited for for ever'],
  [1_350_448_503_718, 'crashes that an owner counted which left before it came to them were forgotten'],
  [1_350_448_503_740, 'an executor that was given up later was given up without its crashes'],
  [1_350_448_504_475, 'a shard was taken under a lease that had been replaced before the append'],
  [778_281, 'a shard was left under a lease that had been replaced'],
  [543_416_773_387, 'a commit that came late was compared with another one at its place'],
  [2_321_960_790_341, 'the same, over a letter'],
  [3_201_353, 'the judge did not know of a letter that had come back while there was no such crew'],
  [1_517_790_291_104, 'the simulated client took a task for accepted whose append was lost'],
  [99_127_110, 'letters were late for longer than they were waited for'],
  [
    2_745_556_239_151,
    'a model call that had waited for a probe was made by an owner that had stood still and was replaced',
  ],
  [2_745_556_239_187, 'the judge did not know of a probe that was given back before that was stored'],
  [882_064, 'a delegation that had waited for more to spend took its task from the answer that brought it'],
  [3_400_372, 'who gave itself a shard was not told by its simulated cluster, and never took it'],
  [2_481_893_753_574, 'a bill that came between two runs of a crew left the difference booked in a shared budget'],
  [
    1_047_326_428_268,
    'a budget of a crew that was replaced by one a run left its place in a shared budget to the next of its name',
  ],
  [2_182_066_095_151, 'crashes over a call were forgotten while its agent waited for a person'],
  [
    1_987_172_497_318,
    'the judge took a last word that came back, since the budget was not there yet, for one that was heard',
  ],
  [8_006, 'a letter for a shared budget came to a shard that was taken and not defined yet, and was lost'],
]
