// Metadata of every role, as a hostile repository might serve it. The first byte says how: as bytes to each
// decoder; as one file of a refresh in which the others are good (signatures fail then, nearly always); or as
// the body of a document that the right key signs, so that what lies behind the signatures is reached too.
#include "common/trust/client.h"
#include "tests/fuzz/fuzz_seeds.h"
#include "tests/support/tuf_repository.h"

using namespace retort;
using testing::TufRepository;

namespace {

constexpr UnixMillis kNow = 1'800'000'000'000;

const TufRepository& repository() {
  static const TufRepository made = [] {
    TufRepository r(kNow);
    const std::string hash(64, 'a');
    r.add({hash, 30, "gguf", {{"header", hash, 0, 30}}, {}});
    r.publish();
    return r;
  }();
  return made;
}

/// The same without lengths and hashes of files in other files: there whatever the right key signs gets
/// through to what reads it.
const TufRepository& loose_repository() {
  static const TufRepository made = [] {
    TufRepository r = repository();
    r.snapshot.meta["targets.json"] = {2, {}, {}};
    r.files["2.snapshot.json"] = testing::sign_body(to_json(r.snapshot), {r.keys["snapshot"]});
    r.timestamp.snapshot = {2, {}, {}};
    r.files["timestamp.json"] = testing::sign_body(to_json(r.timestamp), {r.keys["timestamp"]});
    return r;
  }();
  return made;
}

/// A refresh and a search in which `bytes` stand in the place of the file of one role.
void refresh_with(const TufRepository& repository, const std::string& role, const std::string& bytes) {
  TrustClient client = *TrustClient::open({{"root", repository.first_root()}});
  client.refresh(kNow);
  const auto serve = [&] {
    for (int files = 0; files < 64; ++files) {
      const auto wanted = client.wanted();
      if (!wanted) return;
      const auto file = repository.files.find(TrustClient::file_name(*wanted));
      const bool ours = wanted->role == role;
      fuzz::require(wanted->max_bytes <= TrustClient::kMaxTargetsBytes);
      if (ours && role == "root" && client.root().head.version > 1)
        (void)client.absent().has_value();
      else if (ours || file != repository.files.end())
        (void)client.provide(ours ? bytes : file->second).has_value();
      else
        (void)client.absent().has_value();
    }
    fuzz::require(!client.wanted());
  };
  serve();
  client.find(artifact_target_name(std::string(64, 'a')));
  serve();
  // Whatever came in: what is kept is good enough to begin from again.
  TrustClient::Stored stored{{"root", repository.first_root()}};
  for (auto& [name, text] : client.take_changes())
    if (text) stored[name] = *text;
  fuzz::require(TrustClient::open(std::move(stored)).has_value());
}

}  // namespace

std::vector<std::string> fuzz_seeds() {
  const TufRepository& r = repository();
  TargetsMetadata m = r.targets;
  json::object targets = to_json(m), delegating = targets, bins = targets;
  const json::value role = json::parse(R"([{"name":"a","keyids":["k"],"threshold":1,"paths":["artifacts/*"],
    "terminating":false},{"name":"b","keyids":["k"],"threshold":1,"path_hash_prefixes":["00","f"],"terminating":true}])");
  const json::value keys =
      json::parse(R"({"k":{"keytype":"rsa","scheme":"rsassa-pss-sha256","keyval":{"public":"x"}}})");
  delegating["delegations"] = json::object{{"keys", keys}, {"roles", role}};
  bins["delegations"] = json::object{
      {"keys", keys},
      {"succinct_roles", json::parse(R"({"keyids":["k"],"threshold":1,"bit_length":8,"name_prefix":"x"})")}};
  std::vector<std::string> out;
  const std::vector<std::string> bodies{
      json::serialize(to_json(r.root)),     json::serialize(to_json(r.timestamp)),
      json::serialize(to_json(r.snapshot)), json::serialize(targets),
      json::serialize(delegating),          json::serialize(bins)};
  const std::vector<std::string> files{r.files.at("1.root.json"), r.files.at("timestamp.json"),
                                       r.files.at("2.snapshot.json"), r.files.at("2.targets.json"),
                                       r.assignment("dev-1", 3, "any", std::string(64, 'a'))};
  for (std::size_t i = 0; i < files.size(); ++i) out.push_back(static_cast<char>(i) + files[i]);
  for (std::size_t i = 0; i < bodies.size(); ++i)
    out.push_back(static_cast<char>(8 + std::min<std::size_t>(i, 3)) + bodies[i]);
  return out;
}

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  if (size == 0) return 0;
  const std::string bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  static const std::string roles[] = {"root", "timestamp", "snapshot", "targets"};
  const std::string& role = roles[data[0] % 4];
  if ((data[0] & 8) == 0) {
    (void)TrustClient::check_first_root(bytes).has_value();
    fuzz::require(!verify_assignment(bytes, repository().root, "dev-1", kNow) ||
                  bytes.find("dev-1") != std::string::npos);
    if (const auto document = parse_signed(bytes, "fuzz")) {
      (void)read_root(document->body).has_value();
      (void)read_timestamp(document->body).has_value();
      (void)read_snapshot(document->body).has_value();
      (void)read_assignment(document->body).has_value();
      if (const auto targets = read_targets(document->body))
        (void)delegations_for(*targets, artifact_target_name(std::string(64, 'a')));
    }
    refresh_with(repository(), role, bytes);
    return 0;
  }
  const auto body = parse_json(bytes, "fuzz");
  if (!body || !body->is_object()) return 0;
  auto document = make_document(body->get_object());
  if (!document) return 0;
  add_signature(*document, repository().keys.at(role));
  const std::string text = to_text(*document);
  (void)verify_assignment(text, repository().root, "dev-1", kNow).has_value();
  refresh_with(loose_repository(), role, text);
  return 0;
}
