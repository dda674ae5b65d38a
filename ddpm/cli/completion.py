"""A script for bash that completes commands, options, keys, their values, and run ids.

examples:
  eval "$(ddpm completion)"                           in this shell
  ddpm completion > ~/.local/share/bash-completion/completions/ddpm

It is a list of words, made from the commands' own parsers; make it again after an update.
"""

import argparse
from collections.abc import Iterator
from importlib import import_module

from ddpm.cli.main import COMMANDS
from ddpm.cli.options import command_line
from ddpm.config import Config, Training, json_schema, keys_under, sections_under
from ddpm.runs import find_run

_SCRIPT = """\
# completion of ddpm in bash, by `ddpm completion`
_ddpm() {
  local word=${COMP_WORDS[COMP_CWORD]} before=${COMP_WORDS[COMP_CWORD-1]} words='' run
  if [[ $word == = ]]; then
    before=$before= word=''
  elif [[ $before == = ]]; then
    before=${COMP_WORDS[COMP_CWORD-2]}=
  fi
  local command=${COMP_WORDS[1]}
  ((COMP_CWORD > 1)) || command='' before=''
  case "$command $before" in
@VALUES@
  *) case "$command $word" in
    " "*) words="@COMMANDS@" ;;
@WORDS@
    esac ;;
  esac
  if [[ $words == RUN ]]; then
    words=latest
    for run in @OUTPUT@/*/*/*_????????; do [[ ! -d $run ]] || words+=" ${run##*_}"; done
  fi
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$word")
  [[ ${COMPREPLY[0]-} != *= ]] || compopt -o nospace
}
complete -o default -F _ddpm ddpm
"""


def parser() -> argparse.ArgumentParser:
    """Parser of `ddpm completion`."""
    return command_line("completion", __doc__)


def main(argv: list[str] | None = None) -> int:
    """Print the script; 0."""
    parser().parse_args(argv)
    values, words = [*_values_of_keys()], []
    for command in COMMANDS:
        of = import_module(f"ddpm.cli.{command.replace('-', '_')}").parser()
        shown = [one for one in of._actions if one.help != argparse.SUPPRESS]
        flags = [flag for one in shown for flag in one.option_strings]
        words.append((f'"{command} -"*', flags))
        for one in shown:
            for flag in one.option_strings if one.choices else ():
                values.append((f'"{command} {flag}"|"{command} {flag}="', one.choices))
            if one.dest == "overrides":
                start = str(one.metavar).partition(".")[0].removeprefix("SECTION")
                keys = [f"{key}=" for key in keys_under(Config) if key.startswith(start)]
                words.append((f'"{command} "[[:upper:]]*', keys))
            if one.type is find_run and not one.option_strings:
                words.append((f'"{command} "[[:lower:][:digit:]]*|"{command} "', ["RUN"]))
    text = _SCRIPT.replace("@COMMANDS@", " ".join([*COMMANDS, "--help", "--version"]))
    text = text.replace("@VALUES@", _cases(values, "  "))
    text = text.replace("@WORDS@", _cases(words, "    "))
    print(text.replace("@OUTPUT@", Training.OUTPUT_DIR), end="")
    return 0


def _values_of_keys() -> Iterator[tuple[str, list[str]]]:
    """The words that a key may have, where these are few."""
    for key in keys_under(Config):
        section, _, name = key.rpartition(".")
        schema = json_schema(sections_under(Config)[section])["properties"][name]
        found = []
        for one in schema.get("anyOf", [schema]):
            found += one.get("enum", [])
            found += {"boolean": ["true", "false"], "null": ["null"]}.get(one.get("type"), [])
        if found:
            yield f'*" {key}="', found


def _cases(lines: list[tuple[str, list[str]]], indent: str) -> str:
    return "\n".join(f'{indent}{case}) words="{" ".join(words)}" ;;' for case, words in lines)
