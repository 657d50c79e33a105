"""Scores of trained models.

Read `scoring` first: mean losses over a held-out set. `likelihood` and `multiple_choice` score given texts;
`generation`, `beam_search`, `decoding` and `sampling` write new ones, `writing` compares these with references by
`text_scores`. `prediction` answers records without labels,
and `tables` writes them. `tasks` names what the commands offer; `reports` is what a task says beyond its loss.
"""
