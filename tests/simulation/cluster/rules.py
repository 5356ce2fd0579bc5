"""Which rules hold. All of them do in the product; a mutant breaks one, and the checker has to find it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """True where the rule holds.

    Attributes:
        self_fences: hosts kill at the end of their leases.
        has_guard: a guard does, beside the daemon.
        checks_epoch: what a leader writes is refused after a newer one began.
        checks_token: daemons refuse commands of before a fence that they know of.
        ends_when_token_known: a node is given back only once its host knows the token of its fence.
        has_brake: nothing is fenced while half of the nodes are silent.
        has_share: no more than a share is fenced at once.
        objects: processes that hear a fenced node say so.
        is_fresh: leases are granted only upon fresh readings.
        counts_from_sending: hosts count leases from when they sent the heartbeat.
        waits_out: the wait for a lease is as long as the inequality asks.
        begins_anew: a new leader begins each wait anew.
        publishes: fences are published beside being recorded.
        spares_unprotected: a lease proves nothing of a VM that its host does not know to be protected.
        asks_guard: a lease proves nothing of a host that does not fence itself.
        checks_proof: a VM is moved only upon a proof, not upon the intent.
        remembers: a daemon knows after a restart what it was told.
        rechecks_start: a start that took long looks again at lease and token before the guest does anything.
        revokes: processes that grant leases read which nodes are fenced.
        withholds_token: commands carry the token of their node's fence only once that is over.
        asks_rebooted: that a host runs none of our VMs since it was booted counts only once it knows of its fence.
        asks_version: a lease proves nothing of a host that may not have learnt that it is armed.
        waits_for_objections: a person's word that a host is off counts only after others had time to object.
        checks_generation: daemons refuse commands that newer ones about the same VM overtook.
        heeds_wishes: a VM that shall be off is not started elsewhere.
        ends_before_saying: a host that goes ends its VMs before it says that it did.
        shuts_door: a host that goes has nothing started from when it ends its VMs.
        minds_boots: what a host said before it went counts only in the boot in which it said it.
        settles_moves: a VM is started elsewhere only once it is known where its last migration left it.
        asks_both: a host of a migration that is silent may have the VM.
        stops_source: a guest stands still where it was, from when it is handed over on.
        unprotects_first: a VM is recorded as unprotected before it runs so.
        hears_first: a daemon takes commands only once it was told of fences since it began.
        stays_shut: a host that said that it ended its VMs takes that back before it has one started in that boot.
        orders_words: what a host said before it took it back counts for nothing, however late it comes.
        protects_first: a VM is noted as protected on its host before it is started there.
    """

    self_fences: bool = True
    has_guard: bool = True
    checks_epoch: bool = True
    checks_token: bool = True
    ends_when_token_known: bool = True
    has_brake: bool = True
    has_share: bool = True
    objects: bool = True
    is_fresh: bool = True
    counts_from_sending: bool = True
    waits_out: bool = True
    begins_anew: bool = True
    publishes: bool = True
    spares_unprotected: bool = True
    asks_guard: bool = True
    checks_proof: bool = True
    remembers: bool = True
    protects_first: bool = True
    rechecks_start: bool = True
    revokes: bool = True
    withholds_token: bool = True
    asks_rebooted: bool = True
    asks_version: bool = True
    waits_for_objections: bool = True
    checks_generation: bool = True
    heeds_wishes: bool = True
    ends_before_saying: bool = True
    shuts_door: bool = True
    minds_boots: bool = True
    settles_moves: bool = True
    asks_both: bool = True
    stops_source: bool = True
    unprotects_first: bool = True
    hears_first: bool = True
    stays_shut: bool = True
    orders_words: bool = True
