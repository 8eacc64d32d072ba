"""Reading HLO: loops multiply, asynchronous collectives count once, groups say who talks to whom."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramp.pods import hlo

TEXT = """HloModule jit_step, is_scheduled=true

%cond (p: (s32[], f32[8])) -> pred[] {
  %p = (s32[], f32[8]{0}) parameter(0)
  %limit = s32[] constant(5)
  %i = s32[] get-tuple-element(%p), index=0
  ROOT %lt = pred[] compare(%i, %limit), direction=LT
}

%start_part (a: bf16[4,8]) -> bf16[16,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.1 = bf16[16,8]{1,0:T(8,128)} all-gather(%a), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={async_collective_name="ag"}, metadata={op_name="jit(step)/Block/reshard"}
}

%done_part (a: bf16[4,8]) -> bf16[16,8] {
  %a = bf16[4,8]{1,0} parameter(0)
  ROOT %all-gather.2 = bf16[16,8]{1,0} all-gather(%a), channel_id=3, replica_groups=[2,4]<=[8], dimensions={0}, frontend_attributes={async_collective_name="ag"}
}

%inner (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %perm = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%p), channel_id=9, source_target_pairs={{0,1},{1,2},{2,3},{3,0}}
  ROOT %t = (s32[], f32[8]{0}) tuple(%p)
}

%body (p: (s32[], f32[8])) -> (s32[], f32[8]) {
  %p = (s32[], f32[8]{0}) parameter(0)
  %f1 = bf16[16,8]{1,0} fusion(%p), kind=kCustom, calls=%start_part, backend_config={"estimated_cycles":"100"}
  %f2 = bf16[16,8]{1,0} fusion(%p), kind=kCustom, calls=%done_part, backend_config={"estimated_cycles":"7"}
  %w2 = (s32[], f32[8]{0}) while(%p), condition=%cond, body=%inner, backend_config={"known_trip_count":{"n":"3"}}
  ROOT %t = (s32[], f32[8]{0}) tuple(%p)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %w = (s32[], f32[8]{0}) while(%x), condition=%cond, body=%body
  %ar = (f32[8]{0}, f32[2,2]{1,0}) all-reduce(%x), channel_id=1, replica_groups={{0,4},{1,5},{2,6},{3,7}}, to_apply=%cond
  ROOT %rs = f32[4]{0} reduce-scatter(%x), channel_id=2, replica_groups=mesh['a'=2,'b'=4] {'b'}, dimensions={0}, to_apply=%cond
}
"""


def test_loops_multiply_and_chains_count_once():
    found = {c.kind: c for c in hlo.list_collectives(TEXT, per_slice=4, devices=8)}
    assert len(hlo.list_collectives(TEXT, 4, 8)) == 4
    gather = found["all-gather"]
    assert (gather.count, gather.bytes, gather.group) == (5, 16 * 8 * 2 * 3 / 4, 4)
    assert gather.asynchronous and not gather.between_slices
    assert (found["collective-permute"].count, found["collective-permute"].bytes) == (15, 32)
    reduce = found["all-reduce"]
    assert reduce.bytes == 2 * (32 + 16) / 2 and reduce.between_slices and not reduce.asynchronous
    assert found["reduce-scatter"].bytes == 16 * 3 and not found["reduce-scatter"].between_slices


def test_cycles_are_multiplied_by_the_loops():
    work = hlo.sum_work(TEXT)
    assert sum(one.cycles for one in work.values()) == 5 * (100 + 7)
    assert hlo.sum_work(TEXT, tokens=5)[hlo.REST].cycles == 100 + 7


FUSED_SCATTER = """HloModule jit_step, is_scheduled=true

%all-reduce-scatter.3 (input: f32[64,32]) -> f32[8,32] {
  %input = f32[64,32]{1,0} parameter(0)
  %all-reduce.1 = f32[64,32]{1,0} all-reduce(%input), channel_id=1, replica_groups=[1,8]<=[8], to_apply=%add
  %place = s32[] constant(0)
  ROOT %slice = f32[8,32]{1,0} dynamic-slice(%all-reduce.1, %place, %place), dynamic_slice_sizes={8,32}
}

ENTRY %main (x: f32[64,32]) -> f32[8,32] {
  %x = f32[64,32]{1,0} parameter(0)
  ROOT %fusion.3 = f32[8,32]{1,0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter.3
}
"""


def test_a_fused_scatter_is_a_scatter():
    """A device receives seven partial sums of its eighth, as it does of a scatter by that name."""
    [fused] = hlo.list_collectives(FUSED_SCATTER, 8, 8)
    assert (fused.kind, fused.bytes, fused.group) == ("reduce-scatter", 7 * 4 * 8 * 32, 8)
    [plain] = hlo.list_collectives(FUSED_SCATTER.replace("%all-reduce-scatter.3", "%other"), 8, 8)
    assert (plain.kind, plain.bytes) == ("all-reduce", 2 * 7 * 4 * 8 * 32)


KINDS = """HloModule jit_step, is_scheduled=true

%multiply (a: bf16[8,8]) -> f32[8,8] {
  %a = bf16[8,8]{1,0} parameter(0)
  %cast = f32[8,8]{1,0} convert(%a)
  ROOT %product = f32[8,8]{1,0} convolution(%cast, %cast), dim_labels=bf_io->bf
}

%turn (b: f32[8,8]) -> f32[8,8] {
  %b = f32[8,8]{1,0} parameter(0)
  %bits = f32[8,8]{0,1} bitcast(%b)
  ROOT %turned = f32[8,8]{1,0} copy(%bits)
}

%pick (t: f32[100,8], ids: s32[64]) -> f32[64,8] {
  %t = f32[100,8]{1,0} parameter(0)
  %ids = s32[64]{0} parameter(1)
  ROOT %rows = f32[64,8]{1,0} gather(%t, %ids), offset_dims={1}
}

%skip (s: f32[8,8]) -> f32[8,8] {
  ROOT %s = f32[8,8]{1,0} parameter(0)
}

%narrow (n: f32[8,8]) -> f32[8,8] {
  %n = f32[8,8]{1,0} parameter(0)
  ROOT %scaled = f32[8,8]{1,0} multiply(%n, %n), backend_config={"estimated_cycles":"30"}
}

%wide (w: f32[8,8]) -> f32[8,8] {
  %w = f32[8,8]{1,0} parameter(0)
  %once = f32[8,8]{1,0} multiply(%w, %w), backend_config={"estimated_cycles":"30"}
  ROOT %twice = f32[8,8]{1,0} multiply(%once, %w), backend_config={"estimated_cycles":"30"}
}

ENTRY %main (x: bf16[8,8]) -> f32[8,8] {
  %x = bf16[8,8]{1,0} parameter(0)
  %table = f32[100,8]{1,0} parameter(1)
  %ids = s32[64]{0:T(128)S(1)} parameter(2)
  %y = f32[8,8]{1,0} fusion(%x), kind=kOutput, calls=%multiply, backend_config={"estimated_cycles":"1000"}
  %z = f32[8,8]{1,0} fusion(%y), kind=kLoop, calls=%turn, backend_config={"estimated_cycles":"200"}
  %rows = f32[64,8]{1,0} fusion(%table, %ids), kind=kCustom, calls=%pick
  %heads.1 = bf16[8,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  %splash.1 = bf16[8,8]{1,0} custom-call(%x), custom_call_target="tpu_custom_call"
  %sorted = s32[64]{0:T(128)S(1)} sort(%ids), dimensions={0}, to_apply=%skip
  %maybe = f32[8,8]{1,0} conditional(%i, %z, %z), branch_computations={%narrow, %wide}
  ROOT %guarded = f32[8,8]{1,0} conditional(%i, %maybe, %maybe), true_computation=%narrow, false_computation=%skip
}
"""


def test_work_is_told_apart_and_lookups_count():
    """A gather without estimate reads the table's rows and writes them; 64 sorted numbers are gone over 21 times."""
    work = hlo.sum_work(KINDS)
    assert work[hlo.PRODUCTS] == hlo.Work(1000)
    assert work[hlo.COPIES] == hlo.Work(200)
    assert work[hlo.LOOKUPS].cycles == 0
    rows = 100 * 8 * 4 + 64 * 8 * 4
    assert work[hlo.LOOKUPS].bytes == rows + 6 * 7 / 2 * 2 * 64 * 4


def test_kernels_before_and_behind_attention_count_by_what_they_move():
    """One reads and writes 64 numbers of two bytes; the time of attention itself comes from its FLOPs."""
    assert hlo.sum_work(KINDS)[hlo.REST].bytes == 2 * 64 * 2


def test_of_a_conditional_the_costlier_branch_counts_once():
    """Two windows: the wider; an update that may be skipped: the update."""
    assert hlo.sum_work(KINDS)[hlo.REST].cycles == 60 + 30


MEMORY = """HloModule jit_decode, is_scheduled=true

%cond (p: (s32[], f32[1000])) -> pred[] {
  %p = (s32[], f32[1000]{0}) parameter(0)
  %zero = s32[] constant(0)
  %limit = s32[] constant(32)
  ROOT %lt = pred[] fusion(%p, %limit), kind=kLoop, calls=%none
}

%body (p: (s32[], f32[1000])) -> (s32[], f32[1000]) {
  %p = (s32[], f32[1000]{0}) parameter(0)
  %cache = f32[1000]{0:T(1024)} get-tuple-element(%p), index=1
  %tail = f32[10]{0:T(1024)S(1)} fusion(%cache), kind=kLoop, calls=%none
  %fetch = (f32[500]{0:T(1024)S(1)}, f32[500]{0:T(1024)}, u32[]{:S(2)}) copy-start(%cache)
  ROOT %t = (s32[], f32[1000]{0}) tuple(%p)
}

ENTRY %main (x: f32[1000]) -> f32[1000] {
  %x = f32[1000]{0:T(1024)} parameter(0)
  %late = f32[10]{0:T(1024)} parameter(1)
  %w = (s32[], f32[1000]{0}) while(%x), condition=%cond, body=%body
  %y = f32[1000]{0:T(1024)} get-tuple-element(%w), index=1
  ROOT %dynamic-update-slice.1 = f32[1000]{0:T(1024)} dynamic-update-slice(%y, %late), metadata={}
}
"""


def test_traffic_is_what_is_read_and_written_in_memory_not_in_the_scratchpad():
    """A token reads the cache (4,000 bytes) and fetches half of it (2,000); 32 of them, then 40 bytes join it in place."""
    assert hlo.traffic(MEMORY) == 32 * (4000 + 2000) + 2 * 40
    spilled = MEMORY.replace("%tail = f32[10]{0:T(1024)S(1)}", "%tail = f32[10]{0:T(1024)}")
    assert hlo.traffic(spilled) == 32 * (4000 + 40 + 2000) + 2 * 40


@pytest.mark.parametrize(
    "text, groups",
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2] {'x'}, dims", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['x'=2,'y'=2] {'x','y'}", [[0, 1, 2, 3]]),
        ("source_target_pairs={{0,3},{3,0}}", [[0, 3], [3, 0]]),
        ("dimensions={0}", [[0, 1, 2, 3]]),
    ],
)
def test_groups_in_every_spelling(text, groups):
    assert hlo.parse_groups(text, 4) == groups


@given(
    st.lists(
        st.tuples(st.sampled_from(["f32", "bf16", "s8"]), st.lists(st.integers(0, 9), max_size=3)),
        max_size=4,
    )
)
def test_sizes_are_those_of_numpy(arrays):
    width = {"f32": 4, "bf16": 2, "s8": 1}
    shape = ", ".join(
        f"{kind}[{','.join(map(str, dims))}]{{0:T(8,128)(2,1)}}" for kind, dims in arrays
    )
    assert hlo.list_bytes(f"({shape})") == [
        width[kind] * int(np.prod(dims)) for kind, dims in arrays
    ]
