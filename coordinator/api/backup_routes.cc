#include "coordinator/api/routes.h"
#include "coordinator/state/state.h"

namespace retort {

void add_backup_routes(Api& api, const ApiParts& parts) {
  const ApiParts& p = parts;
  api.add_slow(
      {.method = "POST",
       .path = "/v1/backups",
       .id = "createBackup",
       .noun = "backups",
       .scope = Scope::kAdmin,
       .summary = "Copies all that the coordinator needs into a new folder on its host, while it runs",
       .request = schema::object({{"path", schema::text("of the folder: absolute, not there yet", 4096)}}),
       .response = schema::object({{"path", schema::text()}}),
       .status = 201},
      [&p](const Call& call) -> Result<json::value> {
        const std::filesystem::path to = RETORT_TRY(json_string(call.body, "path", kRequestBody));
        if (!to.is_absolute())
          return fail(ErrorCode::kInvalid, kRequestBody,
                      "'path' must be absolute: it is on the coordinator's host");
        std::error_code error;
        const auto inside = std::filesystem::weakly_canonical(to, error).lexically_relative(
            std::filesystem::weakly_canonical(p.data, error));
        if (!inside.empty() && *inside.begin() != "..")
          return fail(ErrorCode::kInvalid, kRequestBody,
                      "'path' is inside of the coordinator's own folder {}: what is lost with that needs a "
                      "backup elsewhere",
                      p.data.string());
        RETORT_TRY(back_up(p.data, p.store, to, p.clock, p.version));
        return json::value(json::object{{"path", to.string()}});
      });
}

}  // namespace retort
