"""The Prefect flows: character, batch and sweep."""

from charengine.machine.own_packages import take_own_packages

take_own_packages()  # Prefect imports a flow with the folder where it stands searched first, also for `tasks`
