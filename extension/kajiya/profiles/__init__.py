"""Profiles: what a user may choose, and what a choice gives.

A profile file is read by the picker and by the job backends, so that what a user clicked is what a job asks for.
"""

from kajiya.profiles.choose import (
    Selection as Selection,
)
from kajiya.profiles.choose import (
    active_options as active_options,
)
from kajiya.profiles.choose import (
    allowed as allowed,
)
from kajiya.profiles.choose import (
    allowed_profiles as allowed_profiles,
)
from kajiya.profiles.choose import (
    check_fits as check_fits,
)
from kajiya.profiles.choose import (
    merge as merge,
)
from kajiya.profiles.choose import (
    missing_now as missing_now,
)
from kajiya.profiles.choose import (
    select as select,
)
from kajiya.profiles.choose import (
    view as view,
)
from kajiya.profiles.defaults import defaults as defaults
from kajiya.profiles.file import dump as dump
from kajiya.profiles.file import load as load
from kajiya.profiles.file import parse as parse
from kajiya.profiles.file import schema as schema
from kajiya.profiles.model import (
    Choice as Choice,
)
from kajiya.profiles.model import (
    Idle as Idle,
)
from kajiya.profiles.model import (
    Limits as Limits,
)
from kajiya.profiles.model import (
    Option as Option,
)
from kajiya.profiles.model import (
    Profile as Profile,
)
from kajiya.profiles.model import (
    ProfileSet as ProfileSet,
)
from kajiya.profiles.model import (
    ResourcesPatch as ResourcesPatch,
)
from kajiya.sizes import parse_size as parse_size
from kajiya.sizes import show_size as show_size
