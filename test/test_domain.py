"""Domains of one's own."""

from lightvla_ros.domain import reserve_domain


def test_two_reservations_differ_one_after_the_other_too():
    with reserve_domain() as first, reserve_domain() as second:
        assert first != second
        assert 1 <= min(first, second) <= max(first, second) <= 100
    with reserve_domain() as third:
        assert third not in (first, second)


def test_a_given_back_domain_is_free_again():
    seen = []
    for _ in range(101):
        with reserve_domain() as domain:
            seen.append(domain)
    assert len(set(seen)) < len(seen)
