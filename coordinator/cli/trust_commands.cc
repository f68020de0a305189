#include "common/core/file.h"
#include "common/core/hex.h"
#include "common/trust/metadata.h"
#include "coordinator/cli/commands.h"
#include "coordinator/cli/table.h"
#include "coordinator/cli/views.h"

namespace retort::cli {
namespace {

namespace fs = std::filesystem;

struct TrustArguments {
  std::string role, key, file, output;
  std::vector<std::string> files;
  std::uint32_t threshold = 0;
  std::uint64_t version = 0;
};

/// A public key in hexadecimal, or the file of one, or a key file (its public half).
Result<std::string> trust_public_key(const std::string& given) {
  if (ed25519_public_key(given)) return given;
  if (!fs::exists(given))
    return fail(ErrorCode::kInvalid, "",
                "'{}' is neither a public key (64 hexadecimal characters) nor a file", given);
  if (const auto secret = load_signing_key(given)) return to_hex(secret->public_key);
  std::string text = RETORT_TRY(read_file(given, 4096));
  while (!text.empty() && std::isspace(static_cast<unsigned char>(text.back()))) text.pop_back();
  return RETORT_TRY(ed25519_public_key(text)).value;
}

/// Makes the key where the file is not there yet; a file KEY.pub with the public half beside it.
Result<SigningKey> own_key(const std::string& path) {
  if (fs::exists(path)) return load_signing_key(path);
  const SigningKey key = make_signing_key();
  RETORT_TRY(save_signing_key(path, key));
  RETORT_TRY(write_file_atomic(path + ".pub", to_hex(key.public_key) + "\n", 0644));
  return key;
}

std::string short_id(std::string_view id) { return std::string(id.substr(0, 12)); }

/// What a person is about to sign, in words.
Result<std::string> signing_summary(const SignedDocument& document) {
  const std::string type = RETORT_TRY(json_string(document.body, "_type", "document"));
  std::string out;
  if (type == "root") {
    const RootMetadata root = RETORT_TRY(read_root(document.body));
    out = fmt::format("root version {}, expires {}\n", root.head.version, to_rfc3339(root.head.expires));
    const auto line = [&](const std::string& name, const Role& role) {
      out += fmt::format("  {}: {} of", name, role.threshold);
      for (const std::string& id : role.key_ids) out += " " + short_id(id);
      out += "\n";
    };
    for (const auto& [name, role] : root.roles) line(name, role);
    if (root.assignment) line("assignment", *root.assignment);
  } else if (type == "targets") {
    const TargetsMetadata targets = RETORT_TRY(read_targets(document.body));
    out = fmt::format("targets version {}, expires {}, {} artifacts\n", targets.head.version,
                      to_rfc3339(targets.head.expires), targets.targets.size());
    for (const auto& [name, file] : targets.targets)
      out += fmt::format("  {} ({} bytes)\n", name, file.length);
  } else {
    return fail(ErrorCode::kInvalid, "", "only root and targets are signed by hand, this is '{}'", type);
  }
  out += "signed so far by:";
  for (const auto& signature : document.signatures) out += " " + short_id(signature.key_id);
  return out + (document.signatures.empty() ? " nobody\n" : "\n");
}

Result<int> trust_told(const Program& program, const Result<json::value>& answer) {
  if (!answer || !program.as_table()) return program.show(answer);
  const json::object& o = *RETORT_TRY(as_object(*answer, "answer"));
  const std::string role = RETORT_TRY(json_string(o, "role", "answer"));
  const std::uint64_t version = RETORT_TRY(json_uint(o, "version", "answer"));
  if (RETORT_TRY(json_bool(o, "published", "answer")))
    print(fmt::format("{} version {} is published\n", role, version));
  else
    print(fmt::format(
        "{0} version {1} waits for {2}: retort trust export {0} > {0}.json, sign it where the keys are "
        "(retort trust sign {0}.json --key KEYFILE), retort trust import {0}.json\n",
        role, version, RETORT_TRY(json_string(o, "missing", "answer"))));
  return 0;
}

std::string trust_status_text(const json::object& status) {
  const auto member = [](const json::value& value, const char* key) -> const json::value& {
    return value.as_object().at(key);
  };
  Table table({"ROLE", ">VERSION", "EXPIRES", "THRESHOLD", "KEYS"});
  for (const json::value& role : status.at("roles").as_array()) {
    std::string keys;
    const json::array& list = member(role, "keys").as_array();
    for (const json::value& key : list)
      keys += (keys.empty() ? "" : ", ") + short_id(std::string_view(member(key, "id").as_string())) +
              (member(key, "here").as_bool() ? " (here)" : "");
    const json::value &version = member(role, "version"), &expires = member(role, "expires");
    table.row({std::string(member(role, "role").as_string()),
               version.is_null() ? "-" : std::to_string(version.to_number<std::uint64_t>()),
               expires.is_null() ? "-" : to_rfc3339(expires.to_number<std::int64_t>()),
               fmt::format("{} of {}", member(role, "threshold").to_number<std::uint64_t>(), list.size()),
               keys});
  }
  std::string out = table.text();
  out += fmt::format("{} artifacts are listed\n", status.at("artifacts").to_number<std::uint64_t>());
  for (const json::value& draft : status.at("drafts").as_array())
    out += fmt::format("{} version {} waits to be signed: {} of {} signatures\n",
                       std::string_view(member(draft, "role").as_string()),
                       member(draft, "version").to_number<std::uint64_t>(),
                       member(draft, "signatures").to_number<std::uint64_t>(),
                       member(draft, "needed").to_number<std::uint64_t>());
  for (const json::value& warning : status.at("warnings").as_array())
    out += "warning: " + std::string(warning.as_string()) + "\n";
  return out;
}

json::object with_threshold(json::object body, const TrustArguments& given) {
  if (given.threshold > 0) body["threshold"] = given.threshold;
  return body;
}

}  // namespace

void add_trust_commands(Program& program) {
  const auto given = std::make_shared<TrustArguments>();
  CLI::App* app = program.noun(
      "trust", "what devices believe: roles, keys, and the signing of changes (docs/security.md)");
  const auto role_option = [&](CLI::App* command, const char* what) {
    command->add_option("ROLE", given->role, what)->required();
  };
  const auto threshold_option = [&](CLI::App* command) {
    command->add_option("--threshold", given->threshold, "signatures that the role needs from now on");
  };
  const auto role_path = [given](const char* what) {
    return "/v1/trust/roles/" + escape_url(given->role) + "/" + what;
  };

  program.verb(
      app, "status", "roles, versions, keys, what waits to be signed", "", [&program]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        const json::value answer = RETORT_TRY(rest.get("/v1/trust"));
        if (!program.as_table()) return program.show(answer);
        try {
          print(trust_status_text(answer.as_object()));
        } catch (const std::exception& error) {
          return fail(ErrorCode::kUnsupported, "answer", "not what this retort knows: {}", error.what());
        }
        return 0;
      });

  CLI::App* init = program.verb(
      app, "init", "take root, or targets, off the coordinator into keys of your own",
      "  retort trust init alice.key bob.key --threshold 2      # root; makes the key files that are not "
      "there\n"
      "  retort trust init release.key --role targets",
      [&program, given, role_path]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        json::array keys;
        std::vector<SigningKey> own;
        for (const std::string& file : given->files) {
          if (fs::exists(file) && !load_signing_key(file)) {
            keys.emplace_back(
                RETORT_TRY(trust_public_key(file)));  // somebody else's: the public half is enough
            continue;
          }
          own.push_back(RETORT_TRY(own_key(file)));
          keys.emplace_back(to_hex(own.back().public_key));
        }
        json::value answer = RETORT_TRY(rest.post(
            role_path("hand-over"), with_threshold(json::object{{"keys", std::move(keys)}}, *given)));
        // What waits now can be signed at once with the keys that are here.
        for (const char* role : {"root", "targets"}) {
          const Result<json::value> draft = rest.get(std::string("/v1/trust/drafts/") + role);
          if (!draft && draft.error().code == ErrorCode::kNotFound) continue;
          if (!draft) return fail(draft.error());
          SignedDocument document = RETORT_TRY(parse_signed(json::serialize(*draft), role));
          for (const SigningKey& key : own) add_signature(document, key);
          const json::value signed_draft = RETORT_TRY(parse_json(to_text(document), role));
          const Result<json::value> taken = rest.post("/v1/trust/import", signed_draft);
          if (taken)
            answer = *taken;
          else if (taken.error().code != ErrorCode::kDenied)
            return fail(taken.error());
        }
        const Result<int> code = trust_told(program, answer);
        if (code && !own.empty() && program.as_table())
          print("Move the key files to where they are to stay, and keep a copy: nobody can replace them.\n");
        return code;
      });
  init->add_option("KEYFILE", given->files, "secret keys of yours, or public keys of others")->required();
  init->add_option("--role", given->role, "root or targets")->default_str("root")->default_val("root");
  threshold_option(init);

  CLI::App* keygen = program.verb(app, "keygen", "make a key file (here; the coordinator is not asked)",
                                  "  retort trust keygen alice.key      # and alice.key.pub, for add-key",
                                  [given]() -> Result<int> {
                                    if (fs::exists(given->file))
                                      return fail(ErrorCode::kConflict, given->file, "is there already");
                                    const SigningKey key = RETORT_TRY(own_key(given->file));
                                    print(to_hex(key.public_key) + "\n");
                                    return 0;
                                  });
  keygen->add_option("KEYFILE", given->file)->required();

  CLI::App* root = app->add_subcommand("root", "root's metadata");
  root->require_subcommand(1);
  CLI::App* root_show =
      program.verb(root, "show", "print it as devices get it", "", [&program, given]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        const std::string name =
            given->version == 0 ? "root.json" : std::to_string(given->version) + ".root.json";
        print(pretty_json(RETORT_TRY(rest.get("/v1/trust/metadata/" + name))));
        return 0;
      });
  root_show->add_option("--version", given->version, "an older one");

  CLI::App* export_verb = program.verb(
      app, "export", "print the change of root or targets that waits to be signed",
      "  retort trust export root > root.json", [&program, given]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        const json::value draft = RETORT_TRY(rest.get("/v1/trust/drafts/" + escape_url(given->role)));
        print(json::serialize(draft) + "\n");
        return 0;
      });
  role_option(export_verb, "root or targets");

  CLI::App* sign = program.verb(
      app, "sign", "sign an exported change (here; no network is needed)",
      "  retort trust sign root.json --key alice.key", [given]() -> Result<int> {
        const std::string text = RETORT_TRY(read_file(given->file, 16 << 20));
        SignedDocument document = RETORT_TRY(parse_signed(text, given->file));
        std::fputs(RETORT_TRY(signing_summary(document)).c_str(), stderr);
        const SigningKey key = RETORT_TRY(load_signing_key(given->key));
        add_signature(document, key);
        RETORT_TRY(write_file_atomic(given->output.empty() ? given->file : given->output,
                                     to_text(document) + "\n", 0644));
        std::fputs(fmt::format("now also by {}\n", short_id(key_id(public_key_of(key)))).c_str(), stderr);
        return 0;
      });
  sign->add_option("FILE", given->file, "replaced, unless --output is given")->required();
  sign->add_option("--key", given->key, "key file")->required();
  sign->add_option("--output", given->output);

  CLI::App* import_verb =
      program.verb(app, "import", "bring a signed change back; it is published when that is enough", "",
                   [&program, given]() -> Result<int> {
                     const json::value document =
                         RETORT_TRY(parse_json(RETORT_TRY(read_file(given->file, 16 << 20)), given->file));
                     Rest rest = RETORT_TRY(program.connect());
                     return trust_told(program, rest.post("/v1/trust/import", document));
                   });
  import_verb->add_option("FILE", given->file)->required();

  CLI::App* add = program.verb(
      app, "add-key", "let one more key sign as root or targets",
      "  retort trust add-key root carol.key.pub --threshold 2",
      [&program, given, role_path]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        json::object body{{"public", RETORT_TRY(trust_public_key(given->key))}};
        return trust_told(program, rest.post(role_path("keys"), with_threshold(std::move(body), *given)));
      });
  role_option(add, "root or targets");
  add->add_option("KEY", given->key, "64 hexadecimal characters, or a file")->required();
  threshold_option(add);

  CLI::App* remove = program.verb(
      app, "remove-key", "let a key sign no more as root or targets", "",
      [&program, given, role_path]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        return trust_told(program, rest.post(role_path("remove-key"),
                                             with_threshold(json::object{{"id", given->key}}, *given)));
      });
  role_option(remove, "root or targets");
  remove->add_option("KEY-ID", given->key, "or how it begins")->required();
  threshold_option(remove);

  CLI::App* rotate =
      program.verb(app, "rotate", "new keys in the place of those that the coordinator holds for a role",
                   "  retort trust rotate timestamp", [&program, given, role_path]() -> Result<int> {
                     Rest rest = RETORT_TRY(program.connect());
                     return trust_told(program, rest.post(role_path("rotate"), json::object()));
                   });
  role_option(rotate, "root, targets, snapshot, timestamp or assignment");

  CLI::App* drop =
      program.verb(app, "drop", "call a change of root off", "", [&program, given]() -> Result<int> {
        Rest rest = RETORT_TRY(program.connect());
        return program.show(rest.remove("/v1/trust/drafts/" + escape_url(given->role)));
      });
  role_option(drop, "root");
}

}  // namespace retort::cli
