#pragma once

#include <string>
#include <string_view>

#include "common/core/result.h"
#include "common/model/audit.h"
#include "common/model/records.h"
#include "common/model/rollout.h"

/// Stored records as Cap'n Proto bytes (schemas/records.capnp). decode_…: kCorrupt.
namespace retort::wire {

std::string encode(const DeviceRecord& record);
std::string encode(const DeviceClass& record);
std::string encode(const Site& record);
std::string encode(const TeacherRecord& record);
std::string encode(const DatasetRecord& record);
std::string encode(const ArtifactRecord& record);
std::string encode(const JobRecord& record);
std::string encode(const TokenRecord& record);
std::string encode(const AuditEntry& record);
std::string encode(const IdempotencyRecord& record);
std::string encode(const RolloutRecord& record);
std::string encode(const RolloutMember& record);
std::string encode(const RolloutEvent& record);

template <typename Record>
Result<Record> decode_record(std::string_view bytes);
template <>
Result<DeviceRecord> decode_record(std::string_view bytes);
template <>
Result<DeviceClass> decode_record(std::string_view bytes);
template <>
Result<Site> decode_record(std::string_view bytes);
template <>
Result<TeacherRecord> decode_record(std::string_view bytes);
template <>
Result<DatasetRecord> decode_record(std::string_view bytes);
template <>
Result<ArtifactRecord> decode_record(std::string_view bytes);
template <>
Result<JobRecord> decode_record(std::string_view bytes);
template <>
Result<TokenRecord> decode_record(std::string_view bytes);
template <>
Result<AuditEntry> decode_record(std::string_view bytes);
template <>
Result<IdempotencyRecord> decode_record(std::string_view bytes);
template <>
Result<RolloutRecord> decode_record(std::string_view bytes);
template <>
Result<RolloutMember> decode_record(std::string_view bytes);
template <>
Result<RolloutEvent> decode_record(std::string_view bytes);

}  // namespace retort::wire
