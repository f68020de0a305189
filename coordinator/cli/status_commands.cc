#include "coordinator/cli/commands.h"
#include "coordinator/cli/views.h"

namespace retort::cli {
namespace {

struct StatusArguments {
  std::string id;
  std::string duration;
  std::string metric;
  std::string resolution;
  std::string shell;
};

/// Commands and long options, by the words typed so far.
std::string completion(const CLI::App& root, const std::string& shell) {
  std::string cases;
  const std::function<void(const CLI::App*, const std::string&)> visit = [&](const CLI::App* app,
                                                                             const std::string& path) {
    std::string words;
    for (const CLI::App* child : app->get_subcommands([](const CLI::App*) { return true; })) {
      words += child->get_name() + " ";
      visit(child, path.empty() ? child->get_name() : path + " " + child->get_name());
    }
    for (const CLI::App* from : {app, &root}) {
      for (const CLI::Option* option : from->get_options())
        for (const std::string& name : option->get_lnames()) words += "--" + name + " ";
      if (app == &root) break;
    }
    cases += fmt::format("    \"{}\") words=\"{}\" ;;\n", path, words);
  };
  visit(&root, "");
  // zsh has what bash's script needs.
  return std::string(shell == "zsh" ? "#compdef retort\nautoload -Uz bashcompinit && bashcompinit\n" : "") +
         "_retort() {\n  local path= word words=\n  for word in \"${COMP_WORDS[@]:1:COMP_CWORD-1}\"; do\n"
         "    [[ $word == -* ]] || path+=\"${path:+ }$word\"\n  done\n"
         "  while :; do\n    case \"$path\" in\n" +
         cases +
         "    esac\n    [[ -n $words || $path != *\" \"* ]] && break\n    path=${path% *}\n  done\n"
         "  COMPREPLY=($(compgen -W \"$words\" -- \"${COMP_WORDS[COMP_CWORD]}\"))\n"
         "  [[ -n ${COMPREPLY[*]} ]] || COMPREPLY=($(compgen -f -- \"${COMP_WORDS[COMP_CWORD]}\"))\n}\n"
         "complete -F _retort retort\n";
}

}  // namespace

void add_status_commands(Program& program) {
  const auto given = std::make_shared<StatusArguments>();
  CLI::App* telemetry = program.verb(
      &program.app(), "telemetry", "what devices measured",
      "  retort telemetry --device dev-0011223344556677 --since 1h", [&program, given]() -> Result<int> {
        std::string since;
        if (!given->duration.empty())
          since = std::to_string(now() -
                                 static_cast<UnixMillis>(RETORT_TRY(parse_duration(given->duration)) * 1000));
        return program.list("/v1/telemetry" + query_of({{"device", given->id},
                                                        {"metric", given->metric},
                                                        {"since", since},
                                                        {"resolution", given->resolution}}),
                            telemetry_table);
      });
  telemetry->add_option("--device", given->id);
  telemetry->add_option("--metric", given->metric);
  telemetry->add_option("--since", given->duration, "45s, 30m, 12h or 7d back");
  telemetry
      ->add_option("--resolution", given->resolution,
                   "raw: each point, of two days; minute, of two weeks; hour, of 400 days: their means")
      ->check(CLI::IsMember({"raw", "minute", "hour"}));
  program.verb(&program.app(), "status", "the coordinator and its fleet in short",
               "  retort status\n  retort status -o json", [&program, given]() -> Result<int> {
                 Rest rest = RETORT_TRY(program.connect());
                 return program.show(rest.get("/v1/status"));
               });
  CLI::App* complete = program.verb(&program.app(), "completion", "print a completion script for a shell",
                                    "  retort completion bash > /etc/bash_completion.d/retort",
                                    [&program, given]() -> Result<int> {
                                      print(completion(program.app(), given->shell));
                                      return 0;
                                    });
  complete->add_option("SHELL", given->shell, "bash or zsh")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh"}));
}

}  // namespace retort::cli
