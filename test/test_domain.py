"""Domains of one's own."""

from lightvla_ros.domain import reserve_domain


def test_two_reservations_differ_and_a_given_back_domain_is_free_again():
    with reserve_domain() as first, reserve_domain() as second:
        assert first != second
        assert 1 <= min(first, second) <= max(first, second) <= 100
    with reserve_domain() as again:
        assert again == first
