-- Makes events of ingestd for fluent-bit.yaml. What is given again gets the same event_id and timestamp again.

local function text(value, otherwise)
    if value == nil or value == flb_null or value == "" then
        return otherwise
    end
    return tostring(value)
end

local function rfc3339(time)
    return os.date("!%Y-%m-%dT%H:%M:%S", time.sec) .. string.format(".%09dZ", time.nsec)
end

-- A line of a file. Where it has no id, its place in the file is one. Its time goes as it is: ingestd checks it.
function line_to_event(tag, time, record)
    local file, offset = record.file, record.offset
    record.file, record.offset = nil, nil
    return 2, time, {
        event_id = text(record.id, string.format("%s:%.0f", file, offset)),
        service_name = text(record.service, "unknown"),
        event_type = text(record.event, "log"),
        timestamp = text(record.time, rfc3339(time)),
        payload = record,
        metadata = { file = file, offset = offset },
    }
end

-- A log record of OpenTelemetry. Its identity is the attribute log.record.uid; without it the record cannot be told from
-- another, ingestd rejects it, and Fluent Bit's log has the verdict.
function log_to_event(tag, time, group, metadata, record)
    local resource = group.resource and group.resource.attributes or {}
    local log = metadata.otlp or {}
    local attributes = log.attributes or {}
    local event = {
        event_id = attributes["log.record.uid"],
        service_name = text(resource["service.name"], "unknown"),
        event_type = text(log.event_name, text(attributes["event.name"], "log")),
        timestamp = rfc3339(time),
        payload = record,
        metadata = { resource = resource, log = log },
    }
    return 2, time, metadata, event
end
