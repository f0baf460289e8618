-- How much each of {subjects} uses. Writes nothing.
if sources_missing() then return cjson.encode({sources = true}) end
local found = {}
for index, subject in ipairs(request.subjects) do found[index] = standing(account(subject, true)) end
return cjson.encode({standings = found})
