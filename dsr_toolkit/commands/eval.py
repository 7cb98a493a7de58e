"""Measure predictions against ground truth."""

import argparse

from . import eval_cad, eval_geometry, eval_questions, eval_world

HELP = "measure predictions against ground truth"
TASKS = ("cad", "world", *eval_geometry.TASKS, *eval_questions.TASKS)


def add_arguments(parser) -> None:
    tasks = parser.add_subparsers(dest="task", required=True, metavar="TASK")
    cad = tasks.add_parser("cad", help=eval_cad.HELP, description=eval_cad.__doc__)
    eval_cad.add_arguments(cad)
    cad.set_defaults(run_task=eval_cad.run, needs=eval_cad.NEEDS)
    world = tasks.add_parser("world", help=eval_world.HELP, description=eval_world.__doc__)
    eval_world.add_arguments(world)
    world.set_defaults(run_task=eval_world.run, needs=None)
    for name, (help_text, _) in eval_geometry.TASKS.items():
        task = tasks.add_parser(
            name,
            help=help_text,
            description=eval_geometry.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        eval_geometry.add_arguments(task, name)
        task.set_defaults(run_task=eval_geometry.run, needs=eval_geometry.NEEDS.get(name))
    for name, help_text in eval_questions.TASKS.items():
        task = tasks.add_parser(name, help=help_text, description=eval_questions.__doc__)
        eval_questions.add_arguments(task, name)
        task.set_defaults(run_task=eval_questions.run, needs=None)


def run(args) -> None:
    args.run_task(args)
