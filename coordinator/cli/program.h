#pragma once

#include <CLI/CLI.hpp>
#include <functional>
#include <string>
#include <vector>

#include "common/core/clock.h"
#include "coordinator/cli/rest.h"

namespace retort::cli {

UnixMillis now();
void print(const std::string& text);
/// "90", "45s", "30m", "12h", "7d" in seconds.
Result<std::uint64_t> parse_duration(const std::string& text);
/// The items of a list, over all its pages.
Result<json::array> items_of(Rest& rest, const std::string& path);
/// The member "id" of an answer.
Result<std::string> id_of(const json::value& answer);
/// A path as the coordinator sees it: absolute, when it is on this host.
std::string server_path(const Rest& rest, const std::string& path);

/// The program retort: its options, and what its commands have in common. Thread: one.
class Program {
 public:
  using Action = std::function<Result<int>()>;

  explicit Program(const std::string& version);
  int run(int argc, char** argv);

  CLI::App& app() { return app_; }
  /// A group of commands ("teacher").
  CLI::App* noun(const std::string& name, const std::string& what);
  /// A command of a group, or of the program itself; `examples`: lines for its help.
  CLI::App* verb(CLI::App* noun, const std::string& name, const std::string& what,
                 const std::string& examples, Action action);
  /// The ordinary commands of a noun: ls, show ID, and one that deletes.
  void add_ls(CLI::App* noun, const std::string& path, std::string (*table)(const json::array&, UnixMillis));
  void add_show(CLI::App* noun, const std::string& path, const std::string& id_name);
  void add_remove(CLI::App* noun, const std::string& name, const std::string& what, const std::string& path,
                  const std::string& id_name, const std::string& done);

  Result<Rest> connect() const;
  bool as_table() const { return output_ == "table"; }
  /// Prints an answer in the form that -o asks for.
  Result<int> show(const Result<json::value>& answer) const;
  /// Gets a list and prints it.
  Result<int> list(const std::string& path,
                   const std::function<std::string(const json::array&)>& table) const;

 private:
  CLI::App app_;
  std::string server_ = "http://127.0.0.1:8440", token_, token_file_, fingerprint_, output_ = "table";
  bool trust_new_ = false;
  Action action_;
};

}  // namespace retort::cli
