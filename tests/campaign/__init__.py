"""The campaign: attacks of clients, signals and machines on a server, and the proof that nobody else is hurt.

The commands, and the way of a request:

    python -m tests.campaign --short            minutes; every phase, small
    python -m tests.campaign                    an hour; writes bench/results/campaign.json
    python -m tests.campaign --only wire --seconds 240 --out piece.json

    grammar ──► request_paths ──► a real `bros-serve` (house) ──► Reply ──► judge, ledger ──► report ──► JSON, document
"""
