#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <vector>

#include "common/core/json.h"
#include "common/core/result.h"

namespace retort {

/// The program that judges exported files: the one given, or beside us, or on PATH.
Result<std::filesystem::path> find_serve(const std::filesystem::path& given);

/// retort-serve's figures for a file: `serve eval FILE ARGUMENTS…`, whose output is kept in `folder` while it
/// runs. kInternal with its last words when it fails; `check_stop` is asked when a signal comes.
Result<json::object> serve_eval(const std::filesystem::path& serve, const std::filesystem::path& file,
                                const std::vector<std::string>& arguments,
                                const std::filesystem::path& folder,
                                const std::function<Result<void>()>& check_stop);

}  // namespace retort
