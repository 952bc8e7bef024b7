"""Send thousands of keyed messages and webhooks while Twilio and AWS fail, and judge the run by independent records.

    make chaos               # three seeds; SHORT=1 for a small run, SEED=7 to repeat one
    .venv/bin/python -m tests.chaos.verdict .local/chaos/<run>...   # judge runs again, from their files alone

`schedule` says which caller sends each key, and which faults hit it. `setting` starts the stack behind the faults.
`run` and `channels` send. `drain` records Twilio's messages, the bus's events and the failed queue. `verdict` judges.
`webhooks` says which webhooks are delivered, and which faults hit each. `deliver` delivers them as Twilio does, and
`published` judges them. `naive` has the client and the receiver that must fail under the faults.
`lost` is a separate measurement of the cost of a lost answer.
"""
