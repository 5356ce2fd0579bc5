"""Finds the places of the tree that a person named: projects by id or name, folders by id or path."""

from __future__ import annotations

from collections.abc import Iterator

import click

from controlplane.cli.api_client import FOLDER_SERVICE, PROJECT_SERVICE, ApiClient, Document
from controlplane.cli.failures import Failure
from controlplane.cli.lookup import is_id
from limiquantix.errors import NotFound, Reason

project_option = click.option("--project", metavar="PROJECT", help="Name or id of a project.")
folder_option = click.option("--folder", metavar="FOLDER", help="Id of a folder, or its path such as 'prod/web'.")


def list_projects(client: ApiClient) -> Iterator[Document]:
    """Yield all projects that the caller sees, oldest first."""
    for page in client.pages(PROJECT_SERVICE, "ListProjects", {}):
        yield from page.get("projects", ())


def list_folders(client: ApiClient, filters: Document) -> Iterator[Document]:
    """Yield all folders that match the filters of ListFolders, oldest first."""
    for page in client.pages(FOLDER_SERVICE, "ListFolders", filters):
        yield from page.get("folders", ())


def project_id_of(client: ApiClient, name_or_id: str | None) -> str:
    """Return the id of a project; "" for none.

    Raises:
        NotFound: no project has that name.
    """
    if not name_or_id:
        return ""
    if is_id(name_or_id):
        return name_or_id.lower()
    for project in list_projects(client):
        if project.get("name") == name_or_id:
            return str(project.get("id", ""))
    raise NotFound(Reason.PROJECT_NOT_FOUND, f"there is no project named {name_or_id!r}")


def folder_id_of(client: ApiClient, path_or_id: str | None, project_id: str = "") -> str:
    """Return the id of a folder; "" for none.

    Args:
        project_id: looks in this project only; "" in all.

    Raises:
        NotFound: no folder has that path.
        Failure: several projects have such a folder.
    """
    if not path_or_id:
        return ""
    if is_id(path_or_id):
        return path_or_id.lower()
    wanted = path_or_id.strip("/")
    matches = [each for each in list_folders(client, {"projectId": project_id}) if each.get("path") == wanted]
    if not matches:
        raise NotFound(Reason.FOLDER_NOT_FOUND, f"there is no folder {wanted!r}")
    if len(matches) > 1:
        raise Failure(
            f"{len(matches)} folders have the path {wanted!r}",
            explanations=tuple(f"folder {each.get('id')} of project {each.get('projectId')}" for each in matches),
            hint="name it by its id, or say --project",
        )
    return str(matches[0].get("id", ""))
