"""Pieces of work in threads: in order, without a graph, one torch thread each, and with the result of one thread."""

import os
import threading

import pytest
import torch

from rqa_ray.retriever.cpu_attention import Reach, attend
from rqa_ray.retriever.cpu_threads import in_threads


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_results_come_in_order_from_threads_that_compute_with_one_thread_and_keep_no_graph(threads):
    threads(2)
    weight, both = torch.ones(1, requires_grad=True), threading.Barrier(2)

    def work(number: int) -> tuple[int, int, bool]:
        both.wait(60)
        return number, torch.get_num_threads(), (weight * number).requires_grad

    assert in_threads(work, range(6)) == [(number, 1, False) for number in range(6)]
    assert torch.get_num_threads() == 2
    started: list[int] = []
    other = threading.Thread(target=lambda: started.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert started == [2]  # later threads are not slowed


def test_few_pieces_share_the_threads_and_one_piece_has_them_all_in_the_calling_thread(threads):
    threads(5)
    weight = torch.ones(1, requires_grad=True)

    def work(_: int) -> tuple[int, int, bool]:
        return threading.get_ident(), torch.get_num_threads(), (weight * 2).requires_grad

    assert [found[1:] for found in in_threads(work, range(2))] == [(2, False)] * 2
    assert in_threads(work, range(1)) == [(threading.get_ident(), 5, False)]
    assert in_threads(work, range(0)) == []


def test_a_forked_process_has_threads_of_its_own(threads):
    threads(2)
    in_threads(lambda number: number, range(4))
    child = os.fork()
    if not child:
        os._exit(in_threads(lambda number: number, range(4)) != [0, 1, 2, 3])
    assert os.waitpid(child, 0)[1] == 0


def test_an_error_of_a_piece_reaches_the_caller_and_the_threads_work_on(threads):
    threads(2)
    with pytest.raises(ZeroDivisionError):
        in_threads(lambda number: 1 // number, range(4))
    assert in_threads(lambda number: number + 1, range(4)) == [1, 2, 3, 4]


def test_threads_write_into_the_tensors_of_inference_mode(threads):
    threads(2)
    with torch.inference_mode():
        target = torch.zeros(4)
        in_threads(lambda number: target[number].fill_(number), range(4))
    assert target.tolist() == [0, 1, 2, 3]


def test_each_calling_thread_has_threads_of_its_own_that_end_with_it(threads):
    threads(2)
    before = threading.active_count()
    found: list[list[int]] = []
    both = threading.Barrier(2)  # the number of a thread that has ended may be given again

    def call() -> None:
        found.append(in_threads(lambda _: threading.get_ident(), range(8)))
        both.wait(60)

    callers = [threading.Thread(target=call) for _ in range(2)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    assert not set(found[0]) & set(found[1])
    deadline = threading.Event()
    for _ in range(100):
        if threading.active_count() <= before:
            break
        deadline.wait(0.1)
    assert threading.active_count() <= before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_with_dropout_has_the_same_bits_with_any_number_of_threads(threads, dtype):
    lengths = [40, 40, 40, 33, 21, 21, 5]
    query, key, value = (torch.randn(sum(lengths), 4, 16).to(dtype).requires_grad_() for _ in range(3))
    found = []
    for number in (1, 2, 3, 8, 20):
        threads(number)
        torch.manual_seed(7)
        attended = attend(query, key, value, lengths, Reach(), 0.2, 0.3)
        found.append([attended, *torch.autograd.grad(attended.square().sum(), (query, key, value))])
    for other in found[1:]:
        assert all(torch.equal(one, two) for one, two in zip(found[0], other, strict=True))
