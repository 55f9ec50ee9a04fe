"""The line of calls that wait in one lane, and who of them goes next.

One rule: `head` names one call, and goes on naming it until a call comes or leaves, a share is charged or corrected, or
a prompt cache comes near its end; nothing else moves anybody. It admits nothing and reads no clock: whoever holds the
limits asks for the head, tries it, and says what became of it. Over every policy stand two rules, each with its bound:

- interactive before batch, but while both wait one admission in BATCH_EVERY is batch's;
- a call whose prompt cache is about to die, and would then cost COLD_RATIO times as much or more, goes first, the
  earliest end first; of the lane's limit such calls get at most half, and at most MOST_BOOSTS admissions in a row.

So whatever a policy promises a call in admissions, it keeps within 1 + MOST_BOOSTS times as many, and for batch within
BATCH_EVERY times those.
"""

from collections.abc import Hashable, Iterator
from heapq import heapify, heappop, heappush
from itertools import chain, islice, takewhile
from typing import Literal, TypeVar

from headgate.core.choosing import Adaptive
from headgate.core.policies import Entry, Group, Policy
from headgate.core.shares import LEAST_COST_S, Shares, Waiter
from headgate.core.wording import seconds_text

BATCH_EVERY = 8
BOOST_MARGIN_S = 60.0
"""How long before its end a prompt cache puts its call first: two tries at 30 s, where a cache lives 300 s."""

COLD_RATIO = 4.0
MOST_BOOSTS = 16
MOST_CREDIT_S = 10.0
"""Boosted calls are paid for by what others were served before, up to so many seconds of the limit."""

Why = Literal["policy", "cache", "batch"]
Item = TypeVar("Item")


class Line:
    """The waiting calls of one lane under a policy that may change. Adding and leaving cost O(log n)."""

    def __init__(self, policy: Policy | Adaptive) -> None:
        """Start empty."""
        self.shares = Shares()
        self._entries: dict[int, Entry] = {}
        self._warm: list[tuple[float, int, Entry]] = []
        self._batch_waits = 0
        self._boosts = 0
        self._credit_s = 0.0
        self._picked: tuple[Entry, Why] | None = None
        self.set_policy(policy)

    def __len__(self) -> int:
        return len(self._entries)

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter.order in self._entries

    @property
    def policy(self) -> Policy | Adaptive:
        """The policy in force."""
        return self._policy

    def set_policy(self, policy: Policy | Adaptive) -> None:
        """Order by another policy from now on; counters and waiting calls stay. O(n log n)."""
        self._policy = policy
        self._adaptive = policy if isinstance(policy, Adaptive) else None
        if self._adaptive is not None:
            for entry in self._entries.values():
                self._adaptive.enters(entry.waiter)
        self._order_by(policy.rule if isinstance(policy, Adaptive) else policy)

    def add(self, waiter: Waiter) -> None:
        """Let a call wait; it must not wait already."""
        assert waiter.order not in self._entries, f"call {waiter.order} waits already"
        entry = Entry(waiter, waiter.cost_s)
        self._entries[waiter.order] = entry
        self.shares.enters(waiter)
        if self._adaptive is not None:
            self._adaptive.enters(waiter)
        self._sections[waiter.interactive].add(entry)
        if self._rule.lives_on == "programs":  # a new guess moves the program's other calls too
            self._rekey(waiter)
        if waiter.warm_until_s is not None and waiter.cold_cost_s >= COLD_RATIO * waiter.cost_s:
            heappush(self._warm, (waiter.warm_until_s, waiter.order, entry))
            if len(self._warm) > 2 * len(self._entries) + 64:
                _compact(self._warm)

    def remove(self, waiter: Waiter) -> bool:
        """Take out a call that gave up; False when it does not wait."""
        entry = self._entries.pop(waiter.order, None)
        if entry is None:
            return False
        self._leave(entry)
        return True

    def head(self, now_s: float) -> Waiter | None:
        """Give the call that goes next."""
        picked = self._pick(now_s)
        return picked[0].waiter if picked is not None else None

    def would_lead(self, waiter: Waiter, now_s: float) -> bool:
        """Whether a call that waits elsewhere would go next if it waited here."""
        self.add(waiter)
        leads = self.head(now_s) is waiter
        self.remove(waiter)
        self._pick(now_s)
        return leads

    def next_few(self, now_s: float, most: int) -> list[Waiter]:
        """Give those behind the head that may go before it where they do not delay it, the best first.

        Of several groups first one call of each, then the second ones; as if nothing were charged in between.
        """
        picked = self._pick(now_s)
        if picked is None:
            return []
        found: dict[int, Entry] = {}
        near = takewhile(lambda item: item[0] - now_s <= BOOST_MARGIN_S, _in_order(self._warm))
        by_policy = (self._sections[interactive].in_order(most + 1) for interactive in (True, False))
        for entry in chain(islice((entry for _, _, entry in near if entry.waits), most), *by_policy):
            if entry is not picked[0]:
                found.setdefault(entry.waiter.order, entry)
                if len(found) == most:
                    break
        return [entry.waiter for entry in found.values()]

    def admitted(self, waiter: Waiter, now_s: float) -> float:
        """Charge an admission, from the line or past an empty one; gives the cost charged, for `settled`."""
        entry = self._entries.pop(waiter.order, None)
        cost_s = waiter.cost_s if entry is None else entry.cost_s
        if self._rule.lives_on == "turns":
            self._take_turn(waiter, None if entry is None else entry.group)
        self.shares.charge(waiter, cost_s, self._least_served_s())
        if entry is not None:
            self._count_turn(entry, cost_s)
            self._leave(entry)
        self._rekey(waiter)
        if self._adaptive is not None and self._adaptive.review(waiter, cost_s, now_s):
            self._order_by(self._adaptive.rule)
        return cost_s

    def settled(self, waiter: Waiter, charged_s: float, actual_s: float) -> None:
        """Correct the shares once it is known what an admitted call cost."""
        self.shares.correct(waiter, actual_s - charged_s)
        self._rekey(waiter)

    def cost_ahead_s(self, waiter: Waiter) -> float:
        """Give the seconds of the limit that those before a waiting call take, as things stand; O(n).

        The boosts and turns that stand over the policies are left out.
        """
        entry = self._entries[waiter.order]
        ahead_s = self._sections[waiter.interactive].cost_ahead_s(entry)
        return ahead_s if waiter.interactive else ahead_s + self._sections[True].cost_s()

    def reason(self, waiter: Waiter, now_s: float) -> str:
        """Say in words why a call goes first, or what places it where it is."""
        picked = self._pick(now_s)
        entry = self._entries[waiter.order]
        if picked is not None and picked[0] is entry and waiter.warm_until_s is not None and picked[1] == "cache":
            return (
                f"its prompt cache dies in {waiter.warm_until_s - now_s:.1f} s, and it would then take "
                f"{seconds_text(waiter.cold_cost_s)} of the limit instead of {seconds_text(waiter.cost_s)}"
            )
        why = self._rule.reason(self.shares, entry)
        if picked is not None and picked[0] is entry and picked[1] == "batch":
            why = f"it is batch's turn, one in {BATCH_EVERY}, and of batch {why}"
        elif waiter.interactive and self._sections[False].waiting:
            why = f"a person waits for it, and {why}"
        return why if self._adaptive is None else f"{why} ({self._rule.name}, because {self._adaptive.why})"

    def _pick(self, now_s: float) -> tuple[Entry, Why] | None:
        if self._warm:
            self._cool(now_s)
        self._picked = self._choose(now_s)
        return self._picked

    def _choose(self, now_s: float) -> tuple[Entry, Why] | None:
        if self._warm and self._boosts < MOST_BOOSTS and self._credit_s >= 0.0:
            ends_s, _, entry = self._warm[0]
            if ends_s - now_s <= BOOST_MARGIN_S:
                return entry, "cache"
        batch, interactive = self._sections
        first = interactive.head()
        if first is None:
            other = batch.head()
            return None if other is None else (other, "policy")
        if self._batch_waits >= BATCH_EVERY - 1:
            other = batch.head()
            if other is not None:
                return other, "batch"
        return first, "policy"

    def _cool(self, now_s: float) -> None:
        """Drop from the warm ones who left, and those whose cache has died: they cost what they cost cold."""
        while self._warm and (self._warm[0][0] <= now_s or not self._warm[0][2].waits):
            entry = heappop(self._warm)[2]
            if entry.waits:
                colder = Entry(entry.waiter, entry.waiter.cold_cost_s)
                self._entries[entry.waiter.order] = colder
                self._sections[entry.waiter.interactive].replace(entry, colder)

    def _count_turn(self, entry: Entry, cost_s: float) -> None:
        """Count an admission of the line's; one that went before the head, delaying nobody, takes no turn of batch's.

        Nor does it end a row of boosted ones.
        """
        why = self._picked[1] if self._picked is not None and self._picked[0] is entry else None
        paid_s = max(cost_s, LEAST_COST_S)
        if why == "cache":
            self._boosts += 1
            self._credit_s -= paid_s
        else:
            self._credit_s = min(MOST_CREDIT_S, self._credit_s + paid_s)
            if entry.waiter.interactive and self._sections[False].waiting:
                self._batch_waits += 1
            elif why is not None:
                self._batch_waits = 0
            if why is not None:
                self._boosts = 0
        self._picked = None

    def _take_turn(self, waiter: Waiter, group: Group | None) -> None:
        """Let an admission be its agent's turn; also one past an empty line, or who goes at once goes twice."""
        self.shares.took_turn(waiter.agent, self.shares.next_turn(waiter.agent) if group is None else group.turn)
        if group is not None:
            group.turn = self.shares.next_turn(waiter.agent)

    def _leave(self, entry: Entry) -> None:
        entry.waits = False
        self.shares.leaves(entry.waiter)
        if self._adaptive is not None:
            self._adaptive.leaves(entry.waiter)
        self._sections[entry.waiter.interactive].leave(entry)

    def _least_served_s(self) -> float | None:
        if not self._sections[0].waiting and not self._sections[1].waiting:
            return None
        if self._rule.lives_on != "shares":
            return self.shares.floor_s
        return min(section.lowest_key() for section in self._sections)

    def _rekey(self, waiter: Waiter) -> None:
        if self._rule.group_of is not None:
            name = self._rule.group_of(waiter)
            for section in self._sections:
                section.rekey(name)

    def _order_by(self, rule: Policy) -> None:
        if rule.lives_on == "shares":
            self.shares.carry()
        self._rule = rule
        self._sections = (Section(rule, self.shares), Section(rule, self.shares))
        for order in sorted(self._entries):
            entry = self._entries[order]
            self._sections[entry.waiter.interactive].add(entry)


class Section:
    """Calls of one class under one rule: groups in a heap by key, the calls of a group in a heap by rank."""

    def __init__(self, rule: Policy, shares: Shares) -> None:
        """Start empty."""
        self.waiting = 0
        self._rule = rule
        self._grouped = rule.group_of is not None
        self._shares = shares
        self._groups: dict[Hashable, Group] = {}
        self._heap: list[tuple[float, int, int, Group]] = []
        self._pushes = 0

    def add(self, entry: Entry) -> None:
        """Take in a call."""
        rule, waiter = self._rule, entry.waiter
        name = rule.group_of(waiter) if rule.group_of is not None else None
        group = self._groups.get(name)
        if group is None:
            group = self._groups[name] = Group(name, self._shares.next_turn(name))
        entry.group = group
        heappush(group.heap, (rule.rank(waiter, entry.cost_s), waiter.order, entry))
        group.waiting += 1
        group.cost_s += entry.cost_s
        self.waiting += 1
        if self._grouped and group.heap[0][2] is entry:
            self._push(group)

    def leave(self, entry: Entry) -> None:
        """Let a call go that waits no longer."""
        group = entry.group
        assert group is not None
        assert not entry.waits
        self.waiting -= 1
        group.waiting -= 1
        group.cost_s -= entry.cost_s
        heap = group.heap
        if not group.waiting:
            group.item = None
            heap.clear()
            del self._groups[group.name]
        elif heap[0][2] is entry:
            heappop(heap)
            while not heap[0][2].waits:
                heappop(heap)
            if self._grouped:
                self._push(group)
        elif len(heap) > 2 * group.waiting + 16:
            _compact(heap)

    def replace(self, entry: Entry, other: Entry) -> None:
        """Put a call in its own place again with another cost; its group keeps its turn."""
        self.add(other)
        entry.waits = False
        self.leave(entry)

    def rekey(self, name: Hashable) -> None:
        """Place a group anew after its share has changed."""
        group = self._groups.get(name)
        if group is not None and self._grouped:
            self._push(group)

    def head(self) -> Entry | None:
        """Give the first call."""
        group = self._first_group()
        return group.first if group is not None else None

    def lowest_key(self) -> float:
        """Give the key of the first group, infinity when nobody waits."""
        group = self._first_group()
        return group.item[0] if group is not None and group.item is not None else float("inf")

    def cost_s(self) -> float:
        """Give what all of them take together; O(groups)."""
        return sum(group.cost_s for group in self._groups.values())

    def cost_ahead_s(self, entry: Entry) -> float:
        """Give what those take that go before a call, as things stand; O(n)."""
        mine = entry.group
        assert mine is not None
        place = (self._rule.rank(entry.waiter, entry.cost_s), entry.waiter.order)
        ahead = [other.cost_s for rank, order, other in mine.heap if other.waits and (rank, order) < place]
        ahead_s = sum(ahead)
        return ahead_s + sum(
            self._rule.cost_before_s(self._shares, other, mine, ahead_s, len(ahead))
            for other in self._groups.values()
            if other is not mine
        )

    def in_order(self, most: int) -> Iterator[Entry]:
        """Give the first calls, group by group in turn."""
        self._first_group()
        current = (item[3] for item in _in_order(self._heap) if item is item[3].item)
        groups = list(islice(current, most)) if self._grouped else list(self._groups.values())
        calls = [(entry for _, _, entry in _in_order(group.heap) if entry.waits) for group in groups]
        while calls:
            left = []
            for each in calls:
                entry = next(each, None)
                if entry is not None:
                    yield entry
                    left.append(each)
            calls = left

    def _first_group(self) -> Group | None:
        if not self._grouped:
            return next(iter(self._groups.values()), None)
        heap = self._heap
        while heap and heap[0] is not heap[0][3].item:
            heappop(heap)
        return heap[0][3] if heap else None

    def _push(self, group: Group) -> None:
        key, first = self._rule.key(self._shares, group), group.heap[0][1]
        if group.item is not None and group.item[0] == key and group.item[1] == first:
            return
        self._pushes += 1
        group.item = (key, first, self._pushes, group)
        heappush(self._heap, group.item)
        if len(self._heap) > 2 * len(self._groups) + 64:
            self._heap = [each.item for each in self._groups.values() if each.item is not None]
            heapify(self._heap)


def _compact(heap: list[tuple[float, int, Entry]]) -> None:
    """Drop those who left: a heap is bounded by who waits."""
    heap[:] = [item for item in heap if item[2].waits]
    heapify(heap)


def _in_order(heap: list[Item]) -> Iterator[Item]:
    """Give a heap's items from the smallest, untouched; O(log n) each."""
    frontier = [(heap[0], 0)] if heap else []
    while frontier:
        item, index = heappop(frontier)
        yield item
        for child in (2 * index + 1, 2 * index + 2):
            if child < len(heap):
                heappush(frontier, (heap[child], child))
